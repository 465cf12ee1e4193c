"""Turns a step plan into the arrays an executor reads.

Owns buffers that are reused by every step and a block table with one row a running sequence, to which only new blocks
are added. Loops over sequences, never over tokens. Called by `EngineCore`; knows nothing of sampling or of requests.

Between two steps the caches hold weights, not this code, so what is touched counts more than what is computed: a step
of as many sequences, tokens and logits as the one before gets the same `StepInputs`, other numbers in its arrays.
"""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import numpy as np

from millpond.inference.ops.inputs import StepInputs
from millpond.inference.sched.state import Sequence
from millpond.inference.sched.step import StepEntry


@dataclass(frozen=True, slots=True)
class PromptRows:
    """Logits that judge the prompt: row `logit_row + i` predicts the prompt's token `first_target + i`."""

    seq: Sequence
    logit_row: int
    first_target: int
    count: int


@dataclass(frozen=True, slots=True)
class BuiltStep:
    """A step ready to run, and what its logits mean.

    Attributes:
        inputs: Valid until the next `build`.
        sample_rows: (sequence, row of the logits to sample its next token from, its guesses): the rows that follow
            belong to its guesses, one each.
        prompt_rows: Rows wanted for prompt logprobs.
    """

    inputs: StepInputs
    sample_rows: list[tuple[Sequence, int, int]]
    prompt_rows: list[PromptRows]


@dataclass(frozen=True, slots=True)
class _Cells:
    """Arrays as memory to write single numbers to, several times faster than to an array."""

    token_ids: memoryview
    positions: memoryview
    slots: memoryview
    context_len: memoryview
    logit_rows: memoryview


class InputBuilder:
    """Builds `StepInputs`; one for each engine."""

    def __init__(self, *, max_batch_tokens: int, max_sequences: int, max_model_len: int, block_size: int) -> None:
        max_blocks = -(-max_model_len // block_size)
        self._block_size = block_size
        self._token_ids = np.zeros(max_batch_tokens, np.int32)
        self._positions = np.zeros(max_batch_tokens, np.int32)
        self._slots = np.zeros(max_batch_tokens, np.int32)
        self._query_start = np.zeros(max_sequences + 1, np.int32)
        self._context_len = np.zeros(max_sequences, np.int32)
        self._logit_rows = np.zeros(max_batch_tokens, np.int32)
        self._block_tables = np.zeros((max_sequences, max_blocks), np.int32)
        written_singly = (self._token_ids, self._positions, self._slots, self._context_len, self._logit_rows)
        self._cells = _Cells(*[array.data for array in written_singly])
        self._inputs: StepInputs | None = None  # of the last step
        self._shape = (0, 0, 0)  # sequences, tokens and logit rows of it
        self._gathered: list[int] = []  # rows of _tables that _block_tables holds
        # The tables of running sequences, kept between steps; a row holds as many blocks as _filled says.
        self._tables = np.zeros((max_sequences, max_blocks), np.int32)
        self._filled = [0] * max_sequences
        self._row_of: dict[int, int] = {}
        self._counting = np.arange(max(max_batch_tokens, max_sequences) + 1, dtype=np.int32)
        self._free_rows = list(range(max_sequences - 1, -1, -1))

    def forget(self, seq_id: int) -> None:
        """Drops what is kept of a sequence: it ended, or was preempted and will come back with other blocks."""
        row = self._row_of.pop(seq_id, None)
        if row is not None:
            self._filled[row] = 0
            self._free_rows.append(row)

    def build(self, entries: SequenceOf[StepEntry]) -> BuiltStep:
        """Returns the arrays for one step."""
        batch = len(entries)
        rows = [self._table_row(entry.seq) for entry in entries]
        if rows != self._gathered:
            np.take(self._tables, rows, axis=0, out=self._block_tables[:batch])
            self._gathered = rows
        total = sum([entry.num_tokens for entry in entries])
        if total == batch:  # every sequence gives one token, as in most steps
            self._write_singles(entries)
        else:
            self._write_stretches(entries, total)
        num_logits, sample_rows, prompt_rows = self._choose_logits(entries)
        return BuiltStep(self._inputs_of(batch, total, num_logits), sample_rows, prompt_rows)

    def _inputs_of(self, batch: int, total: int, num_logits: int) -> StepInputs:
        shape = batch, total, num_logits
        if self._inputs is not None and shape == self._shape:
            return self._inputs
        self._shape = shape
        self._inputs = StepInputs(
            token_ids=self._token_ids[:total],
            positions=self._positions[:total],
            slots=self._slots[:total],
            query_start=self._query_start[: batch + 1],
            context_len=self._context_len[:batch],
            block_tables=self._block_tables[:batch],
            logit_rows=self._logit_rows[:num_logits],
            block_size=self._block_size,
        )
        return self._inputs

    def _write_singles(self, entries: SequenceOf[StepEntry]) -> None:
        size, cells = self._block_size, self._cells
        for b, entry in enumerate(entries):
            seq, start = entry.seq, entry.start
            cells.token_ids[b] = seq.token_ids[start]
            cells.positions[b] = start
            cells.context_len[b] = start + 1
            cells.slots[b] = seq.block_ids[start // size] * size + start % size
        self._query_start[: len(entries) + 1] = self._counting[: len(entries) + 1]

    def _write_stretches(self, entries: SequenceOf[StepEntry], total: int) -> None:
        batch, end = len(entries), 0
        starts, lengths = [0] * batch, [0] * batch
        for b, entry in enumerate(entries):
            starts[b], lengths[b] = entry.start, entry.num_tokens
            self._token_ids[end : end + entry.num_tokens] = entry.seq.input_token_ids(entry.start, entry.num_tokens)
            end += entry.num_tokens
        first, length = np.array(starts, np.int32), np.array(lengths, np.int32)
        query_start, positions = self._query_start[: batch + 1], self._positions[:total]
        np.cumsum(length, out=query_start[1:])
        query_start[0] = 0
        np.add(first, length, out=self._context_len[:batch])
        np.subtract(self._counting[:total], np.repeat(query_start[:-1] - first, length), out=positions)
        owners = np.repeat(self._counting[:batch], length)
        block, offset = np.divmod(positions, self._block_size)
        np.add(self._block_tables[owners, block] * self._block_size, offset, out=self._slots[:total])

    def _table_row(self, seq: Sequence) -> int:
        row = self._row_of.get(seq.seq_id)
        if row is None:
            row = self._row_of[seq.seq_id] = self._free_rows.pop()
        filled, count = self._filled[row], len(seq.block_ids)
        if count != filled:
            assert count > filled, "a running sequence lost blocks without being forgotten"
            self._tables[row, filled:count] = seq.block_ids[filled:]
            self._filled[row] = count
            self._gathered = []
        return row

    def _choose_logits(
        self, entries: SequenceOf[StepEntry]
    ) -> tuple[int, list[tuple[Sequence, int, int]], list[PromptRows]]:
        samples: list[tuple[Sequence, int, int]] = []
        prompts: list[PromptRows] = []
        count, row = 0, 0
        for entry in entries:
            if entry.seq.needs_prompt_logits and not entry.seq.output_token_ids:  # after a preemption: told already
                judged = min(entry.num_tokens, len(entry.seq.prompt_token_ids) - 1 - entry.start)
                if judged > 0:
                    self._logit_rows[count : count + judged] = np.arange(row, row + judged)
                    prompts.append(PromptRows(entry.seq, count, entry.start + 1, judged))
                    count += judged
            row += entry.num_tokens
            if entry.samples:
                samples.append((entry.seq, count, entry.num_drafts))
                if entry.num_drafts:
                    following = count + entry.num_drafts + 1
                    self._logit_rows[count:following] = np.arange(row - entry.num_drafts - 1, row)
                    count = following
                else:
                    self._cells.logit_rows[count] = row - 1
                    count += 1
        return count, samples, prompts

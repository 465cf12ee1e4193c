"""A model that is a function of all tokens before, with a KV memory that notices every wrong block.

Each slot holds a number made from the token there and the number before it, so a slot's number stands for the whole
prefix. `ToyExecutor` reads the context through the block table and refuses one that is not exactly the sequence's
own; it also refuses to write where another sequence reads. `generate_alone` is the same model with no blocks at all.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable

from millpond.inference.sched import Sequence, StepPlan

VOCAB = 17


def extend(state: int, token_id: int) -> int:
    """The state after one more token."""
    return (state * 1_000_003 + token_id * 7919 + 12_345) % (2**61 - 1)


def states(token_ids: Iterable[int], salt: str) -> list[int]:
    """The state at every position."""
    state = zlib.crc32(salt.encode())
    result = []
    for token_id in token_ids:
        state = extend(state, token_id)
        result.append(state)
    return result


def next_token(state: int) -> int:
    """The token the model chooses after a prefix."""
    return (state >> 7) % VOCAB


def generate_alone(seq: Sequence, max_model_len: int) -> tuple[list[int], str, int | None]:
    """Tokens, finish reason and stop reason of a sequence, computed one token at a time from its arguments alone."""
    token_ids = list(seq.prompt_token_ids)
    output: list[int] = []
    while True:
        if len(output) == seq.max_tokens or len(token_ids) == max_model_len:
            return output, "length", None
        token_id = next_token(states(token_ids, seq.cache_salt)[-1])
        token_ids.append(token_id)
        output.append(token_id)
        if token_id in seq.stop_token_ids and len(output) >= seq.min_tokens:
            return output, "stop", None if token_id in seq.eos_token_ids else token_id


class ToyExecutor:
    """Carries out plans on a memory of `num_blocks` blocks and checks every access."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.block_size = block_size
        self.memory: list[int | None] = [None] * (num_blocks * block_size)
        self.num_computed = 0

    def run(self, plan: StepPlan) -> dict[int, int | list[int]]:
        """The sampled tokens of a plan: one for an entry, or what was accepted of its drafts and one more."""
        self._check_writes(plan)
        tokens: dict[int, int | list[int]] = {}
        for entry in plan.entries:
            seq, start = entry.seq, entry.start
            inputs = seq.input_token_ids(start, entry.num_tokens)
            assert len(inputs) == entry.num_tokens
            expected = states(seq.token_ids[:start] + inputs, seq.cache_salt)
            context = [self.memory[self.slot(seq, position)] for position in range(start)]
            assert context == expected[:start], f"sequence {seq.seq_id} reads a context that is not its own"
            for position in range(start, start + entry.num_tokens):
                self.memory[self.slot(seq, position)] = expected[position]
            self.num_computed += entry.num_tokens
            if entry.samples:
                tokens[seq.seq_id] = self._sample(
                    expected[len(expected) - 1 - entry.num_drafts :], inputs, entry.num_drafts
                )
        return tokens

    def spoil(self, plan: StepPlan) -> None:
        """Writes nonsense wherever the plan may write."""
        self._check_writes(plan)
        for entry in plan.entries:
            for position in range(entry.start, entry.start + entry.num_tokens):
                self.memory[self.slot(entry.seq, position)] = -1

    def slot(self, seq: Sequence, position: int) -> int:
        """Where the sequence keeps a position."""
        return seq.block_ids[position // self.block_size] * self.block_size + position % self.block_size

    def _sample(self, ends: list[int], inputs: list[int], num_drafts: int) -> int | list[int]:
        if not num_drafts:
            return next_token(ends[0])
        accepted = [next_token(ends[0])]
        for state, draft in zip(ends[1:], inputs[-num_drafts:], strict=True):
            if accepted[-1] != draft:
                break
            accepted.append(next_token(state))
        return accepted

    def _check_writes(self, plan: StepPlan) -> None:
        written: dict[int, int] = {}
        for entry in plan.entries:
            for position in range(entry.start, entry.start + entry.num_tokens):
                slot = self.slot(entry.seq, position)
                assert slot not in written, f"sequences {written[slot]} and {entry.seq.seq_id} write to slot {slot}"
                written[slot] = entry.seq.seq_id
        for entry in plan.entries:
            for position in range(entry.start):
                assert self.slot(entry.seq, position) not in written, "a slot is read and written in one step"

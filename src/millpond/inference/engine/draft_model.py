"""`DraftModel`: a smaller model beside the engine's own, that guesses what comes next.

Owns a second executor with a KV cache of its own, and for each sequence the tokens that are in that cache. It follows
the engine's sequences by comparing tokens, so nothing has to be told of preemptions or of guesses that were wrong.
Knows nothing of schedulers; which sequences are worth it is decided by `DraftSpeculator`, its one caller.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from millpond.inference.engine.executor import Executor
from millpond.inference.engine.inputs import InputBuilder
from millpond.inference.kv import BlockPool
from millpond.inference.sampling.drafts import Draft
from millpond.inference.sampling.sampler import Sampler, SampleRow
from millpond.inference.sched.state import Sequence as SchedSequence
from millpond.inference.sched.step import StepEntry


@dataclass(frozen=True, slots=True)
class DraftLimits:
    """What a step of the draft model may hold."""

    max_batch_tokens: int
    max_sequences: int
    max_model_len: int


@dataclass(slots=True)
class _Mirror:
    """A sequence as the draft model has it: `seq.token_ids` are known tokens, and guesses behind them."""

    seq: SchedSequence
    num_known: int = 0


class DraftModel:
    """Guesses tokens with a model of its own.

    Args:
        executor: The model.
        limits: What its steps may hold.
        sampler: The engine's, which draws the guesses as it will draw the tokens.
        clock: Seconds, to tell catching up from guessing.
    """

    def __init__(
        self,
        executor: Executor,
        limits: DraftLimits,
        sampler: Sampler,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._executor = executor
        self._limits = limits
        self._sampler = sampler
        self._clock = clock
        self._pool = BlockPool(executor.info.num_blocks, executor.info.block_size)
        self._builder = InputBuilder(
            max_batch_tokens=limits.max_batch_tokens,
            max_sequences=limits.max_sequences,
            max_model_len=limits.max_model_len,
            block_size=executor.info.block_size,
        )
        self._mirrors: OrderedDict[int, _Mirror] = OrderedDict()  # least recently used first

    def warm(self) -> None:
        """Computes a token nobody asked for: the first step reads the weights in, and would be charged for it."""
        seq = SchedSequence(seq_id=-1, request_id="", prompt_token_ids=[0, 0], max_tokens=0)
        self.catch_up([seq], {seq.seq_id})
        self.forget(seq.seq_id)

    def num_missing(self, seq: SchedSequence) -> int:
        """Known tokens of a sequence that the draft model has not computed."""
        mirror = self._mirrors.get(seq.seq_id)
        return seq.num_tokens - (0 if mirror is None else min(mirror.seq.num_computed_tokens, mirror.num_known))

    def can_guess(self, seq: SchedSequence, count: int) -> bool:
        """Whether the sequence with `count` guesses is within the draft model's context."""
        return seq.num_tokens + count <= self._limits.max_model_len

    def catch_up(self, sequences: Sequence[SchedSequence], kept: set[int]) -> tuple[int, float]:
        """Computes known tokens of sequences but the last of each, within one step's budget.

        Args:
            sequences: Which, most urgent first.
            kept: Ids of sequences whose blocks are not to be taken; these among them.

        Returns:
            How many tokens were computed, and the seconds it took.
        """
        begin = self._clock()
        entries: list[StepEntry] = []
        left = self._limits.max_batch_tokens
        for source in sequences[: self._limits.max_sequences]:
            mirror = self._follow(source, kept)
            start = mirror.seq.num_computed_tokens
            count = min(mirror.num_known - 1 - start, left)
            if count > 0 and self._make_room(mirror.seq, start + count, kept):
                entries.append(StepEntry(mirror.seq, start, count, False))
                left -= count
        if entries:
            self._executor.execute(self._builder.build(entries).inputs)
            for entry in entries:
                entry.seq.num_computed_tokens = entry.start + entry.num_tokens
        return self._limits.max_batch_tokens - left, self._clock() - begin

    def guess(self, wanted: Sequence[tuple[SchedSequence, int]], kept: set[int]) -> dict[int, list[Draft]]:
        """Guesses up to so many tokens of each sequence, one after the other; all sequences at once. As `catch_up`.

        A sequence that misses more tokens than fit in a step, or blocks, gets no guesses.
        """
        guesses: dict[int, list[Draft]] = {}
        going: list[tuple[_Mirror, int]] = []
        left = self._limits.max_batch_tokens
        for source, count in wanted[: self._limits.max_sequences]:
            mirror = self._follow(source, kept)
            missing = mirror.num_known - mirror.seq.num_computed_tokens
            if missing <= left and self._make_room(mirror.seq, mirror.num_known + count - 1, kept):
                left -= missing
                going.append((mirror, count))
        ahead = 0
        while going:
            drafts = self._step([mirror.seq for mirror, _ in going], ahead)
            ahead += 1
            following = []
            for (mirror, count), draft in zip(going, drafts, strict=True):
                if draft is None:
                    continue
                guesses.setdefault(mirror.seq.seq_id, []).append(draft)
                if ahead < count:
                    mirror.seq.token_ids.append(draft.token_id)
                    following.append((mirror, count))
            going = following
        return guesses

    def forget(self, seq_id: int) -> None:
        """Frees what is kept of a sequence; one that is not known is fine."""
        mirror = self._mirrors.pop(seq_id, None)
        if mirror is not None:
            self._pool.free(mirror.seq.block_ids)
            self._builder.forget(seq_id)

    def close(self) -> None:
        """Gives the executor's memory and threads back."""
        self._executor.close()

    def check_integrity(self) -> None:
        """Raises AssertionError when blocks and sequences disagree. For tests."""
        self._pool.check_integrity()
        held = [block for mirror in self._mirrors.values() for block in mirror.seq.block_ids]
        assert len(held) == len(set(held)) == self._pool.num_blocks - self._pool.num_free
        for mirror in self._mirrors.values():
            seq = mirror.seq
            assert mirror.num_known <= len(seq.token_ids)
            assert seq.num_computed_tokens <= min(len(seq.token_ids), len(seq.block_ids) * self._pool.block_size)

    def _step(self, sequences: list[SchedSequence], ahead: int) -> list[Draft | None]:
        """Computes what each sequence lacks and guesses its next token."""
        entries = [
            StepEntry(seq, seq.num_computed_tokens, len(seq.token_ids) - seq.num_computed_tokens, True)
            for seq in sequences
        ]
        step = self._builder.build(entries)
        logits = self._executor.execute(step.inputs)
        for seq in sequences:
            seq.num_computed_tokens = len(seq.token_ids)
        return self._sampler.draft(logits, [SampleRow(seq.seq_id, row) for seq, row, _ in step.sample_rows], ahead)

    def _follow(self, source: SchedSequence, kept: set[int]) -> _Mirror:
        """The sequence's mirror with the tokens that are known now; what was guessed right stays computed."""
        mirror = self._mirrors.get(source.seq_id)
        if mirror is None:
            while len(self._mirrors) >= self._limits.max_sequences and self._evict(kept):
                pass
            seq = SchedSequence(seq_id=source.seq_id, request_id="", prompt_token_ids=[], max_tokens=0)
            mirror = self._mirrors[source.seq_id] = _Mirror(seq)
        self._mirrors.move_to_end(source.seq_id)
        tokens, known = mirror.seq.token_ids, source.token_ids
        right = mirror.num_known
        while right < min(len(tokens), len(known)) and tokens[right] == known[right]:
            right += 1
        del tokens[right:]
        tokens += known[right:]
        mirror.num_known = len(known)
        # The last known token is always computed: its logits are the first guess.
        mirror.seq.num_computed_tokens = min(mirror.seq.num_computed_tokens, right, len(known) - 1)
        return mirror

    def _make_room(self, seq: SchedSequence, end: int, kept: set[int]) -> bool:
        """Gets blocks for the tokens before `end`, from sequences that are not kept if need be."""
        missing = self._pool.blocks_for(end) - len(seq.block_ids)
        while missing > self._pool.num_free:
            if not self._evict(kept):
                return False
        if missing > 0:
            seq.block_ids += self._pool.allocate(missing)
        return True

    def _evict(self, kept: set[int]) -> bool:
        """Forgets the sequence that was not asked for the longest time; False when all are kept."""
        for seq_id in self._mirrors:
            if seq_id not in kept:
                self.forget(seq_id)
                return True
        return False

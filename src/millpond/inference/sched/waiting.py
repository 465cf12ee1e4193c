"""`WaitingQueue`: sequences without blocks, and the decision which of them start.

Owns the order of the queue and the rules of admission: a free place, room in the cache for all known tokens, and nobody
already computing the same prefix. Does not know the token budget or time. Called by the scheduler alone.
"""

from __future__ import annotations

from collections.abc import Callable

from millpond.inference.sched.batch import RunningBatch
from millpond.inference.sched.policy import insert_by_urgency, remove_by_urgency
from millpond.inference.sched.state import Sequence, SequenceStatus


class WaitingQueue:
    """Waiting sequences, most urgent first.

    Starting is strictly in that order, with one exception: a sequence whose next block a running one is computing at
    this moment steps aside until it is done, and others may pass. Choices of one request, and bursts of requests with
    one system prompt, are computed once that way.
    """

    __slots__ = ("_batch", "_max_running", "sequences")

    def __init__(self, batch: RunningBatch, max_running: int) -> None:
        self._batch = batch
        self._max_running = max_running
        self.sequences: list[Sequence] = []

    def __len__(self) -> int:
        return len(self.sequences)

    def add(self, seq: Sequence) -> None:
        """Puts a new or preempted sequence in its place."""
        seq.status = SequenceStatus.WAITING
        insert_by_urgency(self.sequences, seq)

    def remove(self, seq: Sequence) -> None:
        """Takes a sequence out that will not run."""
        remove_by_urgency(self.sequences, seq)

    def admit(self, preempted: list[Sequence], on_start: Callable[[Sequence], None]) -> None:
        """Starts every sequence that may start; what had to stop for that waits again, and is in `preempted`."""
        if not self.sequences or self._is_hopeless():
            return
        keys_in_progress = self._batch.keys_in_progress()
        reserved = self._batch.reserved_blocks()
        index = num_aside = 0
        while index < len(self.sequences):
            seq = self.sequences[index]
            if seq in preempted:  # a plan never stops and starts the same sequence
                break
            num_hits = self._probe(seq)
            if self._steps_aside(seq, num_hits, keys_in_progress):
                index += 1
                num_aside += 1
                if num_aside > self._max_running:  # bounds the work of a step
                    break
                continue
            hits = self._fit(seq, num_hits, reserved)
            if hits is None and self._preempt_for(seq, num_hits, preempted):
                reserved = self._batch.reserved_blocks()
                hits = self._fit(seq, num_hits, reserved)
            if hits is None:
                break
            del self.sequences[index]
            self._batch.start(seq, hits)
            on_start(seq)
            reserved += self._needed_blocks(seq) - len(hits) + 1
            if len(hits) < len(seq.block_keys):
                keys_in_progress.setdefault(seq.block_keys[len(hits)], seq.priority)

    def check_integrity(self) -> None:
        """Raises AssertionError when a waiting sequence is out of order or holds anything. For tests."""
        assert self.sequences == sorted(self.sequences, key=lambda seq: seq.urgency), "waiting list is out of order"
        for seq in self.sequences:
            assert seq.status is SequenceStatus.WAITING, f"sequence {seq.seq_id} is {seq.status}"
            assert not seq.block_ids, f"sequence {seq.seq_id} waits and holds blocks"
            assert not seq.num_computed_tokens, f"sequence {seq.seq_id} waits and counts tokens as computed"

    def _is_hopeless(self) -> bool:
        """No place is free, and nobody running is of a lower class than the first that waits."""
        running = self._batch.sequences
        return len(running) >= self._max_running and self.sequences[0].priority >= running[-1].priority

    def _probe(self, seq: Sequence) -> int:
        prefix = self._batch.cache.prefix
        if prefix is None:
            return 0
        seq.num_probed_blocks = prefix.probe(seq.block_keys, self._hit_limit(seq), seq.num_probed_blocks)
        return seq.num_probed_blocks

    def _hit_limit(self, seq: Sequence) -> int:
        return min(seq.max_cached_tokens // self._batch.cache.block_size, len(seq.block_keys))

    def _steps_aside(self, seq: Sequence, num_hits: int, keys_in_progress: dict[bytes, int]) -> bool:
        """Whether waiting for a running sequence saves a block; never for one of a lower class."""
        if num_hits >= self._hit_limit(seq):
            return False
        priority = keys_in_progress.get(seq.block_keys[num_hits])
        return priority is not None and priority <= seq.priority

    def _needed_blocks(self, seq: Sequence) -> int:
        return self._batch.cache.pool.blocks_for(seq.num_tokens)

    def _fit(self, seq: Sequence, num_hits: int, reserved: int) -> list[int] | None:
        """The cached blocks to start with, or None while there is no place or no room for all known tokens.

        Asking for room for everything, not for the first chunk alone, keeps prompts from starting that would soon take
        each other's blocks.
        """
        if len(self._batch) >= self._max_running:
            return None
        cache = self._batch.cache
        room = cache.pool.num_free - reserved
        is_alone = not self._batch.sequences  # then it has the whole pool, and add() saw that it fits
        if not is_alone and self._needed_blocks(seq) - num_hits > room:
            return None  # cheaper than finding the blocks, and nearly always the same answer
        if cache.prefix is None:
            return []
        hits = cache.prefix.match_keys(seq.block_keys, self._hit_limit(seq))
        taken = self._needed_blocks(seq) - len(hits) + cache.pool.count_free(hits)
        return hits if is_alone or taken <= room else None

    def _preempt_for(self, seq: Sequence, num_hits: int, preempted: list[Sequence]) -> bool:
        """Stops running sequences of a lower class, if that can make a place and room for `seq`."""
        running, pool = self._batch.sequences, self._batch.cache.pool
        lower = [other for other in running if other.priority > seq.priority]
        most_free = pool.num_free + sum(len(other.block_ids) for other in lower)
        if not lower or self._needed_blocks(seq) - num_hits > most_free:
            return False
        while lower and self._fit(seq, num_hits, self._batch.reserved_blocks()) is None:
            victim = self._batch.preempt_last()
            lower.pop()
            self.add(victim)
            preempted.append(victim)
        return True

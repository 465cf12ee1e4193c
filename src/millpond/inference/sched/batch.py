"""`RunningBatch`: the sequences that hold blocks, and the making and taking of room for them.

Owns the list of running sequences, most urgent first, and every call that gives blocks to a sequence or takes them
back. Does not know the token budget, the queue, deadlines or when sequences end. Called by the scheduler and by the
waiting queue.
"""

from __future__ import annotations

from collections import Counter

from millpond.inference.kv import KVCache
from millpond.inference.sched.policy import insert_by_urgency, remove_by_urgency
from millpond.inference.sched.state import Sequence, SequenceStatus


class RunningBatch:
    """Running sequences and their blocks.

    A sequence may only take blocks from those behind it in the list, so the first always gets on, and a preempted
    sequence never caused a more urgent one to stop.
    """

    __slots__ = ("_pool", "cache", "sequences")

    def __init__(self, cache: KVCache) -> None:
        self.cache = cache
        self._pool = cache.pool
        self.sequences: list[Sequence] = []

    def __len__(self) -> int:
        return len(self.sequences)

    def start(self, seq: Sequence, hit_block_ids: list[int]) -> None:
        """Lets a sequence run; the blocks found in the cache are its first ones and count as computed."""
        self._pool.acquire(hit_block_ids)
        seq.block_ids = hit_block_ids
        seq.num_computed_tokens = len(hit_block_ids) * self.cache.block_size
        seq.status = SequenceStatus.RUNNING
        insert_by_urgency(self.sequences, seq)

    def remove(self, seq: Sequence) -> None:
        """Takes a sequence out of the list. Its blocks stay its own until `release`."""
        remove_by_urgency(self.sequences, seq)

    def release(self, seq: Sequence) -> None:
        """Gives the blocks back. Full ones stay findable until they are reused."""
        self._pool.free(seq.block_ids)
        seq.block_ids = []

    def preempt_last(self) -> Sequence:
        """Stops the least urgent sequence. It keeps its tokens and computes them again, or finds them in the cache."""
        seq = self.sequences.pop()
        self.release(seq)
        seq.num_computed_tokens = 0
        seq.num_probed_blocks = len(seq.block_keys)
        seq.num_preemptions += 1
        seq.status = SequenceStatus.WAITING
        return seq

    def make_room(self, seq: Sequence, end: int, preempted: list[Sequence]) -> int:
        """Gets `seq` blocks for its tokens before position `end`, and returns the position up to which it has them.

        Sequences behind it are preempted only when it could not compute a single token otherwise. The last one of all
        does not preempt itself: it waits with what it has, since nobody else is asking for that.
        """
        pool, size, start = self._pool, self.cache.block_size, seq.num_computed_tokens
        while pool.num_free == 0 and start >= len(seq.block_ids) * size and self.sequences[-1] is not seq:
            preempted.append(self.preempt_last())
        missing = min(pool.blocks_for(end) - len(seq.block_ids), pool.num_free)
        if missing > 0:
            seq.block_ids.extend(pool.allocate(missing))
        return min(end, len(seq.block_ids) * size)

    def register(self, seq: Sequence, start: int, end: int) -> None:
        """Makes the blocks findable that became full when the tokens `start .. end-1` were computed."""
        size = self.cache.block_size
        self.cache.extend_keys(seq.block_keys, seq.token_ids, seq.cache_salt)
        self.cache.register(seq.block_ids, seq.block_keys, start // size, end // size)

    def reserved_blocks(self) -> int:
        """Free blocks that are spoken for: what running prompts still need, and one for each sequence to grow into."""
        blocks_for = self._pool.blocks_for
        prompts = sum(
            blocks_for(seq.num_tokens) - len(seq.block_ids) for seq in self.sequences if seq.num_remaining_tokens > 1
        )
        return prompts + len(self.sequences)

    def keys_in_progress(self) -> dict[bytes, int]:
        """The next block of every running prompt: its name, and the priority of the most urgent that computes it."""
        size = self.cache.block_size
        keys: dict[bytes, int] = {}
        for seq in self.sequences:  # most urgent first, so the first to claim a name is the one to keep
            index = seq.num_computed_tokens // size
            if index < len(seq.block_keys):
                keys.setdefault(seq.block_keys[index], seq.priority)
        return keys

    def check_integrity(self, leaving: list[Sequence]) -> None:
        """Raises AssertionError when blocks and sequences disagree; `leaving` hold blocks without running."""
        pool, size = self._pool, self.cache.block_size
        assert self.sequences == sorted(self.sequences, key=lambda seq: seq.urgency), "running list is out of order"
        holders = Counter(block_id for seq in (*self.sequences, *leaving) for block_id in seq.block_ids)
        for block_id in range(pool.num_blocks):
            count = pool.ref_count(block_id)
            assert count == holders[block_id], f"block {block_id} has {count} holds and {holders[block_id]} holders"
        for seq in self.sequences:
            assert seq.status is SequenceStatus.RUNNING, f"sequence {seq.seq_id} is {seq.status}"
            assert seq.num_tokens == len(seq.token_ids) == seq.num_prompt_tokens + len(seq.output_token_ids)
            assert 0 <= seq.num_computed_tokens < seq.num_tokens, f"sequence {seq.seq_id} computed more than is known"
            assert seq.num_computed_tokens <= len(seq.block_ids) * size, f"sequence {seq.seq_id} lacks blocks"
            for block_id in seq.block_ids[seq.num_computed_tokens // size :]:
                is_private = pool.ref_count(block_id) == 1 and pool.key_of(block_id) is None
                assert is_private, f"sequence {seq.seq_id} would write to block {block_id}, which is shared"

"""`BlockPool`: who holds which block of the KV cache, and what a free block still contains.

Owns reference counts, the order in which free blocks are reused, and the name (key) of each block's content. Knows
nothing of tokens, sequences or tensors: a block is a number. Called by `KVCache` and `PrefixCache`; every operation
costs the same whatever the size of the pool.
"""

from __future__ import annotations

from collections.abc import Sequence

from millpond.base.errors import ConfigError


class BlockPool:
    """Blocks `0 .. num_blocks-1`, each held by any number of sequences.

    A block that nobody holds is free. It keeps its content and its key until it is allocated again, so a later prompt
    can take it back with `acquire`. Free blocks are reused in this order: blocks without a key first, then the least
    recently freed; of blocks freed together the end of the chain goes before its beginning, because a chain is only
    useful from its first block on.
    """

    __slots__ = ("_block_by_key", "_keys", "_next", "_previous", "_ref_counts", "block_size", "num_blocks", "num_free")

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1:
            raise ConfigError(f"The KV cache has {num_blocks} blocks.", fix="Give it room for one block at least.")
        if block_size < 1:
            raise ConfigError(f"A KV block of {block_size} tokens is not possible.", fix="Use 32, 64 or 128.")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_free = num_blocks
        self._ref_counts = [0] * num_blocks
        self._keys: list[bytes | None] = [None] * num_blocks
        self._block_by_key: dict[bytes, int] = {}
        # The free list is a ring threaded through two arrays; entry `num_blocks` is its fixed end. Next to be reused:
        # _next[num_blocks].
        self._next = [*range(1, num_blocks + 1), 0]
        self._previous = [num_blocks, *range(num_blocks)]

    @property
    def num_named(self) -> int:
        """Blocks, held or free, whose content can be found by key."""
        return len(self._block_by_key)

    def blocks_for(self, num_tokens: int) -> int:
        """How many blocks hold `num_tokens` tokens."""
        return -(-num_tokens // self.block_size)

    def ref_count(self, block_id: int) -> int:
        """How many holders the block has."""
        return self._ref_counts[block_id]

    def key_of(self, block_id: int) -> bytes | None:
        """The name of the block's content, None while it has none."""
        return self._keys[block_id]

    def find(self, key: bytes) -> int | None:
        """The block with that content, held or free."""
        return self._block_by_key.get(key)

    def count_free(self, block_ids: Sequence[int]) -> int:
        """How many of these blocks nobody holds."""
        ref_counts = self._ref_counts
        return sum(1 for block_id in block_ids if ref_counts[block_id] == 0)

    def allocate(self, count: int) -> list[int]:
        """Takes `count` free blocks for one holder; what they contained is forgotten.

        Raises:
            RuntimeError: Fewer are free. The caller must look at `num_free` first, so this is a bug.
        """
        if count > self.num_free:
            raise RuntimeError(f"{count} blocks asked for, {self.num_free} free")
        following, end = self._next, self.num_blocks
        block_ids = []
        block_id = following[end]
        for _ in range(count):
            block_ids.append(block_id)
            self._ref_counts[block_id] = 1
            self._forget(block_id)
            block_id = following[block_id]
        following[end] = block_id
        self._previous[block_id] = end
        self.num_free -= count
        return block_ids

    def acquire(self, block_ids: Sequence[int]) -> None:
        """Adds a holder to blocks whose content is known; a free one leaves the free list with its content."""
        for block_id in block_ids:
            if self._ref_counts[block_id] == 0:
                before, after = self._previous[block_id], self._next[block_id]
                self._next[before] = after
                self._previous[after] = before
                self.num_free -= 1
            self._ref_counts[block_id] += 1

    def free(self, block_ids: Sequence[int]) -> None:
        """Takes one holder away from each block of a chain, given from its first block to its last.

        Raises:
            RuntimeError: A block has no holder. Its content may belong to somebody else by now, so this is a bug.
        """
        for block_id in reversed(block_ids):
            count = self._ref_counts[block_id] - 1
            if count < 0:
                raise RuntimeError(f"block {block_id} freed twice")
            self._ref_counts[block_id] = count
            if count == 0:
                # Reused last when its content has a name, first when nobody could ever find it.
                after = self.num_blocks if self._keys[block_id] is not None else self._next[self.num_blocks]
                before = self._previous[after]
                self._next[block_id], self._previous[block_id] = after, before
                self._next[before] = self._previous[after] = block_id
                self.num_free += 1

    def name(self, block_id: int, key: bytes) -> bool:
        """Names the content of a held block. False when another block has that content already: the first one stays."""
        if self._keys[block_id] is not None or self._block_by_key.setdefault(key, block_id) != block_id:
            return False
        self._keys[block_id] = key
        return True

    def free_block_ids(self) -> list[int]:
        """The free blocks, next to be reused first."""
        block_ids: list[int] = []
        block_id = self._next[self.num_blocks]
        while block_id != self.num_blocks and len(block_ids) <= self.num_blocks:
            block_ids.append(block_id)
            block_id = self._next[block_id]
        return block_ids

    def check_integrity(self) -> None:
        """Raises AssertionError when the pool's parts disagree. Walks the whole pool: for tests."""
        free = self.free_block_ids()
        assert len(free) == self.num_free, f"free list has {len(free)} blocks, counter says {self.num_free}"
        assert len(set(free)) == len(free), "a block is twice in the free list"
        assert set(free) == {b for b, count in enumerate(self._ref_counts) if count == 0}, "held block in the free list"
        assert all(self._previous[self._next[b]] == b for b in [*free, self.num_blocks]), "free list is torn"
        named = {key: block_id for block_id, key in enumerate(self._keys) if key is not None}
        assert named == self._block_by_key, "keys and index disagree"

    def _forget(self, block_id: int) -> None:
        key = self._keys[block_id]
        if key is not None:
            del self._block_by_key[key]
            self._keys[block_id] = None

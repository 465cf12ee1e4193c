"""`KVCache`: the block pool and the prefix cache of one rank, as the scheduler sees them.

Owns both parts and the switch that turns reuse of prefixes off. Knows nothing of sequences, time or tensors: the
executor owns the memory that the block numbers point into. Made by the engine, driven by the scheduler alone.
"""

from __future__ import annotations

from millpond.inference.kv.blocks import BlockPool
from millpond.inference.kv.prefix import BlockHasher, PrefixCache


class KVCache:
    """Blocks of one rank's KV memory.

    Args:
        num_blocks: How many blocks the executor has memory for.
        hasher: Names the blocks; its block size is the cache's.
        enable_prefix: False never looks for, nor remembers, what a block contains.
    """

    __slots__ = ("block_size", "pool", "prefix")

    def __init__(self, num_blocks: int, hasher: BlockHasher, *, enable_prefix: bool = True) -> None:
        self.block_size = hasher.block_size
        self.pool = BlockPool(num_blocks, hasher.block_size)
        self.prefix = PrefixCache(self.pool, hasher) if enable_prefix else None

    def register(self, block_ids: list[int], keys: list[bytes], first: int, last: int) -> None:
        """Makes blocks `first .. last-1` of a sequence findable, now that they are full."""
        if self.prefix is not None:
            for index in range(first, last):
                self.prefix.register(block_ids[index], keys[index])

    def extend_keys(self, keys: list[bytes], token_ids: list[int], salt: str) -> None:
        """Names the full blocks of `token_ids` that have no name in `keys` yet; nothing with the prefix cache off."""
        if self.prefix is not None:
            self.prefix.hasher.extend(keys, token_ids, salt)

    def check_integrity(self) -> None:
        """Raises AssertionError when the parts disagree. For tests."""
        self.pool.check_integrity()

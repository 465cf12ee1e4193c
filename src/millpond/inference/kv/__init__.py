"""The KV cache's bookkeeping: blocks, their names, and which prefixes are computed. Pure: no torch, no clock.

Used by the scheduler, the engine (to make a `KVCache`), the planner and the memory service.
"""

from millpond.inference.kv.blocks import BlockPool
from millpond.inference.kv.cache import KVCache
from millpond.inference.kv.prefix import BlockHasher, PrefixCache

__all__ = ["BlockHasher", "BlockPool", "KVCache", "PrefixCache"]

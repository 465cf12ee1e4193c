"""Names for the content of KV blocks, and the search for the longest prompt prefix that is already computed.

`BlockHasher` makes the names: a SHA-256 chain over tagged, length-prefixed fields, so that equal names mean equal
keys and values in memory, on every machine and in every process. `PrefixCache` looks them up in a `BlockPool`.
Neither knows of sequences or of tensors. Called by `KVCache` and the scheduler; the router and the memory service
make the same names.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence

from millpond.inference.kv.blocks import BlockPool

_FORMAT = b"millpond.kv/1"


def _field(tag: bytes, payload: bytes) -> bytes:
    """Neither tag nor payload can run into its neighbour: both carry their length."""
    return struct.pack("<BQ", len(tag), len(payload)) + tag + payload


class BlockHasher:
    """Names blocks of `block_size` tokens of one model, as one rank stores it.

    Args:
        block_size: Tokens in a block.
        weights_digest: Digest of the weights' content, never a path or a name.
        dtype: Element type of the cache.
        adapter_digest: Digest of the adapter's content; empty without one.
        layout_version: Changes when the order of the numbers within a block changes.
        shard: Which part of every layer this rank holds.
    """

    __slots__ = ("_identity", "_pack_format", "_token_head", "block_size")

    def __init__(
        self,
        *,
        block_size: int,
        weights_digest: str,
        dtype: str,
        adapter_digest: str = "",
        layout_version: int = 1,
        shard: str = "0/1",
    ) -> None:
        self.block_size = block_size
        fields = (
            (b"weights", weights_digest),
            (b"adapter", adapter_digest),
            (b"dtype", dtype),
            (b"layout", str(layout_version)),
            (b"block_size", str(block_size)),
            (b"shard", shard),
        )
        self._identity = _FORMAT + b"".join(_field(tag, text.encode()) for tag, text in fields)
        self._pack_format = f"<{block_size}I"
        # What stands between the parent and the tokens in every block, made once.
        self._token_head = struct.pack("<BQ", len(b"tokens"), 4 * block_size) + b"tokens"

    def root(self, salt: str) -> bytes:
        """The parent of a first block: everything that is not tokens. Tenants with different salts share nothing."""
        # JSON may carry lone surrogates; they are a salt like any other.
        return hashlib.sha256(self._identity + _field(b"salt", salt.encode("utf-8", "surrogatepass"))).digest()

    def block_key(self, parent: bytes, token_ids: Sequence[int]) -> bytes:
        """The name of a full block that follows `parent`."""
        packed = struct.pack(self._pack_format, *token_ids)
        return hashlib.sha256(_field(b"parent", parent) + self._token_head + packed).digest()

    def extend(self, keys: list[bytes], token_ids: Sequence[int], salt: str) -> None:
        """Appends to `keys` the names of the full blocks of `token_ids` that it lacks; no block is hashed twice."""
        size = self.block_size
        num_full = len(token_ids) // size
        if len(keys) >= num_full:
            return
        parent = keys[-1] if keys else self.root(salt)
        for start in range(len(keys) * size, num_full * size, size):
            parent = self.block_key(parent, token_ids[start : start + size])
            keys.append(parent)


class PrefixCache:
    """Finds computed blocks by name. The pool forgets a name when it reuses the block."""

    __slots__ = ("_pool", "hasher")

    def __init__(self, pool: BlockPool, hasher: BlockHasher) -> None:
        self._pool = pool
        self.hasher = hasher

    def match(self, token_ids: Sequence[int], salt: str) -> list[int]:
        """The blocks of the longest computed prefix of `token_ids`, full blocks only. Takes no hold on them."""
        keys: list[bytes] = []
        self.hasher.extend(keys, token_ids, salt)
        return self.match_keys(keys, len(keys))

    def match_keys(self, keys: Sequence[bytes], limit: int) -> list[int]:
        """As `match`, for names made before; looks at the first `limit` of them."""
        find = self._pool.find
        block_ids = []
        for index in range(limit):
            block_id = find(keys[index])
            if block_id is None:
                break
            block_ids.append(block_id)
        return block_ids

    def probe(self, keys: Sequence[bytes], limit: int, guess: int) -> int:
        """About how many blocks `match_keys` would find, without walking them all; never fewer than it finds.

        Starts at the last answer, so that asking again every step is cheap. It is more than `match_keys` finds only
        when a block in the middle of the chain was reused before the blocks that follow it.
        """
        find = self._pool.find
        count = min(guess, limit)
        while count and find(keys[count - 1]) is None:
            count -= 1
        while count < limit and find(keys[count]) is not None:
            count += 1
        return count

    def register(self, block_id: int, key: bytes) -> bool:
        """Makes a block that was just filled findable. False when an equal block is findable already."""
        return self._pool.name(block_id, key)

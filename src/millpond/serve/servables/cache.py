"""`ResponseCache`: answers to requests that were asked before, up to a size in bytes.

One for all servables that want it; the least recently used goes first. A key covers everything a back end can see of a
request, and which load of the servable answered, so that a new version never gives an old answer.
"""

from __future__ import annotations

import hashlib
import struct
import time
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from millpond.serve.servables.messages import InferRequest
from millpond.serve.servables.tensors import Tensor

_ENTRY_BYTES = 512  # what an entry costs beside its arrays


@dataclass(slots=True)
class CacheStatistics:
    """Counters since the start, of all servables together."""

    num_lookups: int = 0
    num_hits: int = 0
    num_misses: int = 0
    num_evictions: int = 0
    lookup_ns: int = 0
    insertion_ns: int = 0


class ResponseCache:
    """The cache.

    Args:
        size_bytes: Most bytes of outputs.
    """

    def __init__(self, size_bytes: int) -> None:
        self.size_bytes = size_bytes
        self.used_bytes = 0
        self.statistics = CacheStatistics()
        self._entries: OrderedDict[bytes, tuple[dict[str, Tensor], int]] = OrderedDict()

    @property
    def num_entries(self) -> int:
        """How many answers it holds."""
        return len(self._entries)

    @property
    def utilization(self) -> float:
        """The used part of the size, 0 to 1."""
        return self.used_bytes / self.size_bytes

    def get(self, key: bytes) -> dict[str, Tensor] | None:
        """Returns the outputs of an earlier request; they must not be changed."""
        began_ns = time.perf_counter_ns()
        found = self._entries.get(key)
        self.statistics.num_lookups += 1
        if found is None:
            self.statistics.num_misses += 1
        else:
            self.statistics.num_hits += 1
            self._entries.move_to_end(key)
        self.statistics.lookup_ns += time.perf_counter_ns() - began_ns
        return None if found is None else dict(found[0])

    def put(self, key: bytes, outputs: Mapping[str, Tensor]) -> None:
        """Keeps a copy of outputs, unless they alone are larger than the cache."""
        size = _ENTRY_BYTES + sum(_size(tensor) for tensor in outputs.values())
        if size > self.size_bytes:
            return
        began_ns = time.perf_counter_ns()
        self._forget(key)
        while self.used_bytes + size > self.size_bytes:
            self._forget(next(iter(self._entries)))
            self.statistics.num_evictions += 1
        kept = {}
        for name, tensor in outputs.items():
            array = tensor.array.copy()
            array.flags.writeable = False
            kept[name] = msgspec.structs.replace(tensor, array=array)
        self._entries[key] = (kept, size)
        self.used_bytes += size
        self.statistics.insertion_ns += time.perf_counter_ns() - began_ns

    def _forget(self, key: bytes) -> None:
        found = self._entries.pop(key, None)
        if found is not None:
            self.used_bytes -= found[1]


def key_of(request: InferRequest, tag: bytes) -> bytes:
    """Names a request to the servable with this tag; equal requests have equal keys."""
    digest = hashlib.blake2b(tag, digest_size=32)
    wanted = None if request.outputs is None else sorted(request.outputs)
    _add(digest, repr((request.method, wanted, sorted(request.parameters.items()))).encode())
    for name in sorted(request.inputs):
        tensor = request.inputs[name]
        _add(digest, repr((name, tensor.datatype, tensor.array.shape)).encode())
        if tensor.datatype == "BYTES":
            for item in tensor.array.reshape(-1).tolist():
                _add(digest, item if isinstance(item, bytes) else str(item).encode())
        else:
            _add(digest, tensor.array.tobytes())
    return digest.digest()


def _add(digest: hashlib.blake2b, part: bytes) -> None:
    # With its length, so that two parts cannot be cut at another place and look the same.
    digest.update(struct.pack("<Q", len(part)))
    digest.update(part)


def _size(tensor: Tensor) -> int:
    if tensor.datatype == "BYTES":
        return sum(len(item) + 64 for item in tensor.array.reshape(-1).tolist())
    return tensor.array.nbytes

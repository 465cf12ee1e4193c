"""The name of a set of weights: a SHA-256 over the config, the tensor table and samples of every tensor.

Hashing every byte of a large model at each start would cost longer than loading it, so a tensor above `WHOLE_BYTES`
gives evenly spaced windows, its first and last bytes among them. The digest names KV blocks (two models never share
one); it does not prove that a download is intact, for which fetch.py hashes the whole file.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from millpond.inference.weights.base import TensorInfo

FORMAT_TAG = b"millpond-weights-v1"
WHOLE_BYTES = 64 << 10
NUM_WINDOWS = 16
WINDOW_BYTES = WHOLE_BYTES // NUM_WINDOWS

ReadBytes = Callable[[TensorInfo, int, int], bytes]


def digest_weights(config: Mapping[str, Any], tensors: Iterable[TensorInfo], read_bytes: ReadBytes) -> str:
    """Returns the digest as 64 hex digits; `read_bytes(info, offset, size)` counts from the tensor's first byte."""
    hasher = hashlib.sha256(FORMAT_TAG)
    _add(hasher, json.dumps(config, sort_keys=True, default=str).encode())
    for info in sorted(tensors, key=lambda info: info.name):
        _add(hasher, info.name.encode())
        _add(hasher, f"{info.dtype} {info.shape} {info.size_bytes}".encode())
        for offset, size in _windows(info.size_bytes):
            hasher.update(read_bytes(info, offset, size))
    return hasher.hexdigest()


def _add(hasher: hashlib._Hash, field: bytes) -> None:
    hasher.update(len(field).to_bytes(8, "little"))
    hasher.update(field)


def _windows(size: int) -> Iterable[tuple[int, int]]:
    if size <= WHOLE_BYTES:
        yield 0, size
        return
    for index in range(NUM_WINDOWS):
        yield (size - WINDOW_BYTES) * index // (NUM_WINDOWS - 1), WINDOW_BYTES

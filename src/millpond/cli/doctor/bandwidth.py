"""Measures how fast this machine reads memory, the roof over every token: decoding reads all weights once a step.

Reads with the native library where it was built and with numpy otherwise, over a buffer well past the last cache but at
most a quarter of the free memory. Called by the doctor only.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

_SHORTEST_S = 0.4
_LARGEST_BYTES = 1 << 30
_SMALLEST_BYTES = 64 << 20

Words = np.ndarray[tuple[int], np.dtype[np.int64]]
Reader = Callable[[Words, int], float]  # (what to read, threads) -> seconds


@dataclass(frozen=True, slots=True)
class Bandwidth:
    """Bytes a second, the best of several passes."""

    one_thread: float
    all_threads: float
    threads: int
    buffer_bytes: int
    reader: str
    by_threads: dict[int, float] = field(default_factory=dict)


def choose_buffer(cache_bytes: int | None, available_bytes: int) -> int:
    """Returns a buffer size that the cache cannot hold and the memory can."""
    wanted = max(4 * (cache_bytes or 0), 4 * _SMALLEST_BYTES)
    return max(_SMALLEST_BYTES, min(wanted, _LARGEST_BYTES, available_bytes // 4))


def measure_read(threads: int, buffer_bytes: int) -> Bandwidth:
    """Reads a buffer with 1, 2, ... threads: every number up to eight, then doublings, and all of them."""
    data = np.ones(buffer_bytes // 8, dtype=np.int64)
    native = _native_reader()
    read = native or _read_with_numpy
    counts = {count for count in (*range(1, 9), 16, 32, 64, 128) if count < threads} | {1, threads}
    rates = {count: best_rate(read, data, count) for count in sorted(counts)}
    return Bandwidth(rates[1], rates[threads], threads, data.nbytes, "native ops" if native else "numpy", rates)


def _native_reader() -> Reader | None:
    try:
        from millpond.inference.ops import native
    except (ImportError, OSError):  # a broken torch: the doctor's findings say so
        return None
    if native.best_isa() == "none":
        return None
    return lambda data, threads: native.read_seconds(threads, data.view(np.uint8))


def _read_with_numpy(data: Words, threads: int) -> float:
    # The largest of whole numbers: read once at full vector width, outside the interpreter lock, and numpy starts no
    # threads of its own for it.
    pieces = np.array_split(data, threads)
    with ThreadPoolExecutor(threads) as pool:
        before = time.perf_counter()
        list(pool.map(np.maximum.reduce, pieces))
        return time.perf_counter() - before


def best_rate(read: Reader, data: Words, threads: int) -> float:
    """Bytes a second, the best of as many passes as fit into a moment."""
    best = 0.0
    start = time.perf_counter()
    while time.perf_counter() - start < _SHORTEST_S:
        best = max(best, data.nbytes / read(data, threads))
    return best

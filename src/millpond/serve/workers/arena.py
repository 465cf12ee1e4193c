"""Shared memory for large tensors: one arena a direction, written by one side and read by the other.

An arena is a sparse anonymous file mapped whole by both processes; only pages that were written take memory, so it
grows by being used and needs no messages to do so. The writer allocates; the reader says when it has dropped a tensor's
last view, and the place is used again. Nothing has a name in the file system, so nothing is left behind by a crash.
"""

from __future__ import annotations

import bisect
import mmap
import os
import tempfile
import weakref
from collections import deque
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGNMENT = 64
WARM_BYTES = 64 << 20  # written pages up to here are kept when an arena falls empty; those above go back to the system


def make_file(num_bytes: int) -> int:
    """Returns a descriptor of a new anonymous sparse file."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("millpond-arena", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        os.ftruncate(descriptor, num_bytes)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _map(descriptor: int, num_bytes: int) -> mmap.mmap:
    mapped = mmap.mmap(descriptor, num_bytes)
    if hasattr(mmap, "MADV_DONTDUMP"):
        mapped.madvise(mmap.MADV_DONTDUMP)  # else a crash writes the whole address space to its core file
    return mapped


class ArenaWriter:
    """The side that allocates. Not thread-safe.

    Args:
        descriptor: Of the arena's file; stays the caller's to close.
        num_bytes: The file's size.
    """

    def __init__(self, descriptor: int, num_bytes: int) -> None:
        self._map = _map(descriptor, num_bytes)
        self._bytes = np.frombuffer(self._map, np.uint8)
        self._starts = [0]  # of free spans, ascending; no two touch
        self._lengths = [num_bytes]
        self._sizes: dict[int, int] = {}
        self._high_water = 0

    @property
    def used_bytes(self) -> int:
        """How much is allocated now."""
        return sum(self._sizes.values())

    def allocate(self, size: int) -> int | None:
        """Returns the offset of a place for `size` bytes, None when no free span is that large."""
        needed = max(-(-size // ALIGNMENT) * ALIGNMENT, ALIGNMENT)
        at = next((at for at, length in enumerate(self._lengths) if length >= needed), None)
        if at is None:
            return None
        offset = self._starts[at]
        if self._lengths[at] == needed:
            del self._starts[at], self._lengths[at]
        else:
            self._starts[at] += needed
            self._lengths[at] -= needed
        self._sizes[offset] = needed
        self._high_water = max(self._high_water, offset + needed)
        return offset

    def write(self, offset: int, data: NDArray[np.generic]) -> None:
        """Copies an array's bytes to an allocated place; any memory layout becomes C order."""
        place = self._bytes[offset : offset + data.nbytes].view(data.dtype).reshape(data.shape)
        np.copyto(place, data)

    def write_bytes(self, offset: int, data: bytes) -> None:
        """Copies bytes to an allocated place."""
        self._map[offset : offset + len(data)] = data

    def view(self, offset: int, size: int) -> NDArray[np.uint8]:
        """Returns an allocated place as an array."""
        return np.frombuffer(self._map, np.uint8, size, offset)

    def free(self, offset: int) -> None:
        """Gives a place back.

        Raises:
            ValueError: Nothing is allocated there.
        """
        size = self._sizes.pop(offset, None)
        if size is None:
            raise ValueError(f"nothing is allocated at {offset}")
        at = bisect.bisect(self._starts, offset)
        joins_left = at > 0 and self._starts[at - 1] + self._lengths[at - 1] == offset
        joins_right = at < len(self._starts) and offset + size == self._starts[at]
        if joins_left and joins_right:
            self._lengths[at - 1] += size + self._lengths[at]
            del self._starts[at], self._lengths[at]
        elif joins_left:
            self._lengths[at - 1] += size
        elif joins_right:
            self._starts[at] = offset
            self._lengths[at] += size
        else:
            self._starts.insert(at, offset)
            self._lengths.insert(at, size)
        if not self._sizes and self._high_water > WARM_BYTES:
            if hasattr(mmap, "MADV_REMOVE"):
                self._map.madvise(mmap.MADV_REMOVE, WARM_BYTES, self._page_end(self._high_water) - WARM_BYTES)
            self._high_water = 0

    def _page_end(self, offset: int) -> int:
        return min(-(-offset // mmap.PAGESIZE) * mmap.PAGESIZE, len(self._map))


class _Lease(weakref.ref[NDArray[np.uint8]]):
    """Tells which place falls free when the array that it refers to has no view left."""

    __slots__ = ("offset",)
    offset: int


class ArenaReader:
    """The side that looks: hands out arrays on the shared memory and notices when they are dropped, on any thread."""

    def __init__(self, descriptor: int, num_bytes: int) -> None:
        self._map = _map(descriptor, num_bytes)
        self._leases: dict[int, _Lease] = {}
        self._freed: deque[int] = deque()

    def view(self, offset: int, size: int) -> NDArray[np.uint8]:
        """Returns the bytes there; the place is the reader's until the array and all views on it are gone."""
        array: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8, size, offset)
        # numpy makes this very array the base of every view on it, so its end is the end of all of them.
        lease = _Lease(array, self._release)
        lease.offset = offset
        self._leases[offset] = lease
        return array

    @property
    def has_freed(self) -> bool:
        """Whether `take_freed` would return something."""
        return bool(self._freed)

    def take_freed(self) -> list[int]:
        """Returns the places dropped since the last call; the writer is to be told."""
        freed = []
        while self._freed:  # other threads may append meanwhile
            freed.append(self._freed.popleft())
        return freed

    def _release(self, lease: Any) -> None:
        self._leases.pop(lease.offset, None)
        self._freed.append(lease.offset)

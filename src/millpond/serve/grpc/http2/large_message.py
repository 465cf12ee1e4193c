"""`LargeMessage`: a message that is read into one place, instead of being put together from what came.

The place takes memory only as bytes come, or is where somebody else will read it. `calls` makes one once it knows how
long a message is; `connection` has the socket read into it.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

LARGE = 64 << 10
Place = Callable[[int, bytes], memoryview | None]  # of a message of so many bytes that begins so; None is anywhere


class LargeMessage:
    """A message that is on its way.

    Args:
        first: Its first bytes; no more than it has.
        length: Of all of it.
        place: Knows where it is wanted; None when nobody does.
    """

    __slots__ = ("_at", "data")

    def __init__(self, first: bytes | memoryview, length: int, place: Place | None) -> None:
        found = None if place is None else place(length, bytes(first))
        self.data = np.empty(length, np.uint8).data if found is None else found
        self._at = 0
        self.take(first)

    @property
    def is_whole(self) -> bool:
        """Whether nothing is missing."""
        return self._at == len(self.data)

    def take(self, data: bytes | memoryview) -> int:
        """Adds bytes, and returns how many there were too many."""
        size = min(len(data), len(self.data) - self._at)
        self.data[self._at : self._at + size] = data[:size]
        self._at += size
        return len(data) - size

    def room(self) -> memoryview:
        """Returns where the next bytes go."""
        return self.data[self._at :]

    def took(self, size: int) -> None:
        """So many bytes were written into the room."""
        self._at += size

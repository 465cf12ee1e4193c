"""A place of a bounded size that a test empties; a `millpond.serve.room.Room`."""

from __future__ import annotations

import asyncio


class SmallRoom:
    """Full once so many things were put there.

    Args:
        size: How many.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.held = 0
        self._emptied = asyncio.Event()

    @property
    def is_full(self) -> bool:
        return self.held >= self.size

    def put(self) -> None:
        self.held += 1

    def empty(self) -> None:
        self.held = 0
        self._emptied.set()

    async def drained(self) -> None:
        while self.is_full:
            self._emptied.clear()
            await self._emptied.wait()

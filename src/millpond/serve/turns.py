"""`Turns`: work that is short, but that of many requests at once is not.

Some of it is done in a turn of the event loop, and the rest in the next ones: between two turns the loop looks at the
engine's socket, so a burst of requests does not hold up the tokens of those before it. Used by the gateway and by the
back ends that tokenise.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import perf_counter
from typing import TypeVar

T = TypeVar("T")

_TURN_S = 0.002  # of work in a turn of the loop; a token that waits for it is hardly later


class Turns:
    """Lets work through, one piece after another."""

    def __init__(self) -> None:
        self._lock = asyncio.Lock()
        self._spent_s = 0.0

    async def run(self, work: Callable[[], T]) -> T:
        """Runs `work` when it is its turn."""
        async with self._lock:
            began_s = perf_counter()
            try:
                return work()
            finally:
                self._spent_s += perf_counter() - began_s
                if self._spent_s > _TURN_S:
                    self._spent_s = 0.0
                    await asyncio.sleep(0)

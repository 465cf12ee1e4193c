"""`Timer`: one timer that is set to the earliest of the moments it is asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


class Timer:
    """Calls back once, then waits to be set again.

    Args:
        callback: What to call.
        clock: Nanoseconds; the moments are in its time.
    """

    def __init__(self, callback: Callable[[], None], clock: Callable[[], int]) -> None:
        self._callback = callback
        self._clock = clock
        self._handle: asyncio.TimerHandle | None = None
        self._at_ns = 0

    def at(self, at_ns: int) -> None:
        """Rings at this moment, unless it rings earlier anyway."""
        if self._handle is not None:
            if self._at_ns <= at_ns:
                return
            self._handle.cancel()
        self._at_ns = at_ns
        delay_s = max(0, at_ns - self._clock()) / 1e9
        self._handle = asyncio.get_running_loop().call_later(delay_s, self._ring)

    def stop(self) -> None:
        """Does not ring any more, until it is set again."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _ring(self) -> None:
        self._handle = None
        if self._clock() < self._at_ns:
            self.at(self._at_ns)  # the loop's clock is coarser than ours
        else:
            self._callback()

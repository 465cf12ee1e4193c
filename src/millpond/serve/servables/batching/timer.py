"""`Timer`: one timer that is set to the earliest of the moments it is asked for.

What is near rings to a tenth of a millisecond where the system can (`alarm.py`); what is far, or in the time of another
clock than the machine's, is a timer of the event loop.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from millpond.serve.servables.batching.alarm import Alarm

_NEAR_NS = 200_000_000


class Timer:
    """Calls back once, then waits to be set again.

    Args:
        callback: What to call.
        clock: Nanoseconds; the moments are in its time.

    Attributes:
        at_ns: When it rings; 0 while it is not set.
    """

    def __init__(self, callback: Callable[[], None], clock: Callable[[], int]) -> None:
        self._callback = callback
        self._clock = clock
        self._handle: asyncio.TimerHandle | None = None
        self._alarm: Alarm | None = None
        self._may_be_exact = clock is time.monotonic_ns
        self.at_ns = 0

    def at(self, at_ns: int) -> None:
        """Rings at this moment, unless it rings earlier anyway."""
        if self.at_ns:
            if self.at_ns <= at_ns:
                return
            self._disarm()
        self.at_ns = at_ns
        delay_ns = max(0, at_ns - self._clock())
        if delay_ns < _NEAR_NS and self._may_be_exact and (alarm := self._exact()) is not None:
            alarm.set(at_ns)
        else:
            self._handle = asyncio.get_running_loop().call_later(delay_ns / 1e9, self._ring)

    def stop(self) -> None:
        """Does not ring any more, until it is set again."""
        self._disarm()
        if self._alarm is not None:
            self._alarm.close()
            self._alarm = None

    def _exact(self) -> Alarm | None:
        if self._alarm is None:
            try:
                self._alarm = Alarm(self._ring)
            except OSError:
                self._may_be_exact = False
        return self._alarm

    def _disarm(self) -> None:
        self.at_ns = 0
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
        elif self._alarm is not None:
            self._alarm.set(0)

    def _ring(self) -> None:
        self._handle = None
        at_ns, self.at_ns = self.at_ns, 0
        if self._clock() < at_ns:
            self.at(at_ns)  # the loop's clock is coarser than ours
        elif at_ns:
            self._callback()

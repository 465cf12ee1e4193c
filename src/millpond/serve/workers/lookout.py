"""`Lookout`: keeps the event loop awake for the answer of a worker that is about to come.

A loop that sleeps is woken by the answer, and what it runs then has grown cold: for a request that is alone and a model
of some microseconds that is a good part of its way. So the loop goes round instead, and takes whatever else comes; it
gives its processor to whoever wants it. Only for as long as such answers have taken lately, never where they take long.
`Worker` owns one; it knows neither messages nor sockets.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable

_LONGEST_NS = 200_000  # an answer that takes longer is slept for
_SHARE = 1.5  # of the time that answers take, for which one is looked for
_STEP_NS = 10_000  # by which one answer changes what is thought of the next; one that a stranger held up says little
_IN_A_ROW = 16  # answers that came alone; with several clients the processors have something better to do


class Lookout:
    """Looks for the answers of one worker.

    Args:
        is_worth_it: Whether one answer is awaited, and no more.
        clock: Nanoseconds of a clock that only goes forward.
        num_processors: How many this process may use; with one, the worker needs it.
    """

    __slots__ = ("_clock", "_is_looking", "_is_worth_it", "_most_ns", "_num_alone", "_typical_ns", "_until_ns")

    def __init__(
        self,
        is_worth_it: Callable[[], bool],
        clock: Callable[[], int] = time.monotonic_ns,
        num_processors: int | None = None,
    ) -> None:
        self._is_worth_it = is_worth_it
        self._is_looking = False
        self._until_ns = 0
        self._num_alone = 0
        self._clock = clock
        has_another = (_num_processors() if num_processors is None else num_processors) > 1
        self._most_ns = self._typical_ns = 2 * _LONGEST_NS if has_another else 1 << 60

    def begin(self, now_ns: int) -> None:
        """Something was sent to a worker that had nothing to do."""
        if self._num_alone >= _IN_A_ROW and self._typical_ns < _LONGEST_NS:
            self._until_ns = now_ns + int(_SHARE * self._typical_ns)
            if not self._is_looking:
                self._is_looking = True
                asyncio.get_running_loop().call_soon(self._look)

    def ended(self, began_ns: int, *, was_alone: bool) -> None:
        """The answer is there."""
        self._num_alone = self._num_alone + 1 if was_alone else 0
        is_longer = self._clock() - began_ns > self._typical_ns
        self._typical_ns = min(self._typical_ns + (_STEP_NS if is_longer else -_STEP_NS), self._most_ns)

    def _look(self) -> None:
        self._is_looking = self._is_worth_it() and self._clock() < self._until_ns
        if self._is_looking:
            os.sched_yield()
            asyncio.get_running_loop().call_soon(self._look)


def _num_processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""An event loop whose clock jumps to the next timer as soon as nothing else can happen.

What sleeps an hour is tested in a millisecond, to the nanosecond, and on a busy machine as on an idle one. For code
that waits for nothing outside of the loop.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Coroutine, Mapping
from typing import Any, TypeVar

T = TypeVar("T")


class _JumpingSelector(selectors.SelectSelector):
    """Advances the clock instead of waiting."""

    now_s = 1000.0
    oversleep_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if ready or timeout == 0:
            return ready
        if timeout is None:
            raise RuntimeError("every task waits and nothing will ever happen")
        self.now_s += timeout + self.oversleep_s
        return []

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return super().get_map()


class VirtualLoop(asyncio.SelectorEventLoop):
    """The loop."""

    def __init__(self) -> None:
        self._virtual = _JumpingSelector()
        super().__init__(self._virtual)

    def oversleep(self, seconds: float) -> None:
        """From now on it wakes up so much later than it should."""
        self._virtual.oversleep_s = seconds

    def time(self) -> float:
        return self._virtual.now_s


def clock() -> int:
    """Nanoseconds of the running loop's clock."""
    return round(asyncio.get_running_loop().time() * 1e9)


def oversleep(seconds: float) -> None:
    """Makes the running loop wake up so much later than it should."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop.oversleep(seconds)


def run(main: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine in virtual time."""
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(main)

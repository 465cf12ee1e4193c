"""`Alarm`: a timer of the kernel, where a millisecond matters.

Timers of an event loop count in milliseconds, and add what is left of the one that has begun: a delay of 5 ms is 5.5 to
6.5. A timerfd is as exact as the kernel's clock, and is one more descriptor that the loop looks at. Linux only; `Timer`
uses it and does without where there is none.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import sys
import time
from collections.abc import Callable

_ABSOLUTE = 1  # TFD_TIMER_ABSTIME


class _Moment(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _Setting(ctypes.Structure):
    _fields_ = (("interval", _Moment), ("at", _Moment))


class Alarm:
    """One timer of the kernel. Made on an event loop.

    Args:
        callback: Called when it rings.

    Raises:
        OSError: There is none.
    """

    def __init__(self, callback: Callable[[], None]) -> None:
        if sys.platform != "linux":
            raise OSError("timers as descriptors are Linux's")
        self._callback = callback
        self._loop = asyncio.get_running_loop()
        library = ctypes.CDLL(None, use_errno=True)
        self._settime = library.timerfd_settime
        self._descriptor: int = library.timerfd_create(time.CLOCK_MONOTONIC, os.O_NONBLOCK | os.O_CLOEXEC)
        if self._descriptor < 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))
        self._setting = _Setting()
        self._reference = ctypes.byref(self._setting)
        self._loop.add_reader(self._descriptor, self._ring)

    def set(self, at_ns: int) -> None:
        """Rings at this moment of `time.monotonic_ns`, at once if it has passed; 0 is never. Forgets the one before."""
        self._setting.at.seconds, self._setting.at.nanoseconds = divmod(at_ns, 1_000_000_000)
        self._settime(self._descriptor, _ABSOLUTE, self._reference, None)

    def close(self) -> None:
        """Frees it."""
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _ring(self) -> None:
        with contextlib.suppress(BlockingIOError):  # it was set anew after it had rung
            os.read(self._descriptor, 8)
            self._callback()

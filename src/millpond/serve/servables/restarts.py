"""`Backoff`: how long to wait before a crashed instance is started again. Pure: the caller says what time it is.

A replica asks; a first crash is answered with no wait at all, crashes in a row with longer and longer ones.
"""

from __future__ import annotations


class Backoff:
    """Waits that double while an instance does not live long enough.

    Args:
        first_s: The second wait; the first is 0.
        longest_s: No wait is longer.
        settled_s: Having lived this long, an instance starts from the beginning.
    """

    def __init__(self, first_s: float, longest_s: float, settled_s: float) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._settled_s = settled_s
        self._num_crashes = 0
        self._up_since_s: float | None = None

    def started(self, now_s: float) -> None:
        """Notes that the instance is up."""
        self._up_since_s = now_s

    def next_wait_s(self, now_s: float) -> float:
        """Notes a crash, or an attempt that failed, and returns how long to wait before the next attempt."""
        if self._up_since_s is not None and now_s - self._up_since_s >= self._settled_s:
            self._num_crashes = 0
        self._up_since_s = None
        wait_s = 0.0
        if self._num_crashes:
            # The exponent is bounded, so that a servable that is broken for days does not overflow a float.
            wait_s = min(self._longest_s, self._first_s * 2.0 ** min(self._num_crashes - 1, 32))
        self._num_crashes += 1
        return wait_s

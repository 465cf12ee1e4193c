"""`Lead`: how long before its bound a batch sets out, learnt from how late the last ones were. Pure.

A queue delay is the longest a request may wait, and whoever sleeps until its end is late by as much as it takes to wake
up and to hand a batch over. So a batch sets out earlier: by nearly all of the lateness seen lately when nobody has come
for a while and waiting on gives nothing, by less while the batch grows. Owned by a dynamic batcher.
"""

from __future__ import annotations

from collections import deque

_KEPT = 128
_MOST = 0.9  # of the batches are no later than this lead
_QUIET = 8  # parts of the delay: nobody has come for one of them


class Lead:
    """The lead of one queue's batches.

    Args:
        delay_ns: How long a request may wait. The lead is at most half of it, a quarter while a batch grows.

    Attributes:
        near_ns: While a batch grows.
        far_ns: When nobody has come for `quiet_ns`.
    """

    def __init__(self, delay_ns: int) -> None:
        self.near_ns = 0
        self.far_ns = 0
        self.quiet_ns = delay_ns // _QUIET
        self._delay_ns = delay_ns
        self._late: deque[int] = deque(maxlen=_KEPT)

    def was_late(self, late_ns: int) -> None:
        """Takes note of how long after the moment it aimed at a batch was handed over."""
        self._late.append(late_ns)
        ordered = sorted(self._late)
        self.far_ns = min(max(ordered[-1], 0), self._delay_ns // 2)
        self.near_ns = min(max(ordered[int(_MOST * (len(ordered) - 1))], 0), self._delay_ns // 4)

    def of(self, now_ns: int, last_ns: int) -> int:
        """Returns how early a batch may go now whose last request came at `last_ns`."""
        return self.far_ns if now_ns - last_ns >= self.quiet_ns else self.near_ns

    def aim(self, bound_ns: int, last_ns: int) -> int:
        """Returns when a batch goes that must have gone at `bound_ns`, unless others come."""
        return min(bound_ns - self.near_ns, max(bound_ns - self.far_ns, last_ns + self.quiet_ns))

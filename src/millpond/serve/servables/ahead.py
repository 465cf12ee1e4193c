"""`Ahead`: how many executions an instance is given before it has finished the one it runs.

A worker that gets its next batch only after the gateway has heard of the last one is idle for two changes of process;
with a small model that is most of the time. So it is given more, as much as takes it about a millisecond, and again
more when half of that is done, so that it comes in few messages. Owns these numbers; a replica asks.
"""

from __future__ import annotations

from millpond.serve.servables.backend import ExecutionTiming

_WORK_NS = 1_000_000
_MOST = 16
_WEIGHT = 0.2  # of the newest execution in the mean


class Ahead:
    """The executions of one instance.

    Args:
        concurrency: How many the instance runs at once.
        is_allowed: Whether it may be given more: it runs them in order, and nothing else could run them sooner.

    Attributes:
        limit: How many executions it may have.
        low: While it has more, it is not given any.
    """

    __slots__ = ("_concurrency", "_is_allowed", "_mean_ns", "limit", "low")

    def __init__(self, concurrency: int, *, is_allowed: bool) -> None:
        self._concurrency = concurrency
        self._is_allowed = is_allowed
        self._mean_ns = 0.0
        self.limit = concurrency
        self.low = concurrency - 1

    @property
    def is_allowed(self) -> bool:
        """Whether executions may wait at the instance."""
        return self._is_allowed

    def took(self, timing: ExecutionTiming) -> None:
        """Takes note of an execution."""
        if not self._is_allowed:
            return
        taken_ns = timing.compute_infer_ns
        self._mean_ns += _WEIGHT * (taken_ns - self._mean_ns) if self._mean_ns else taken_ns
        if taken_ns > _WORK_NS:
            self._mean_ns = max(self._mean_ns, taken_ns)  # a slow one counts at once, fast ones have to add up
        self.limit = self._concurrency + min(_MOST, int(_WORK_NS / max(self._mean_ns, 1.0)))
        self.low = max(self._concurrency - 1, self.limit // 2)

    def restarted(self) -> None:
        """The instance is a new one: what it takes is not known."""
        self._mean_ns = 0.0
        self.limit = self._concurrency
        self.low = self._concurrency - 1

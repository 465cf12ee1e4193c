"""Times the stages of loading, so that a start can explain where its seconds went."""

from __future__ import annotations

import time
from collections.abc import Callable

from millpond.base.progress import Progress


class StageClock:
    """A `Progress` that passes on what it is told and adds up the time between changes of stage.

    Args:
        forward: Told everything this is told; None for nobody.
        stage: What is being done when the clock starts.
        started_s: When that began, if it was earlier than now.
        clock: Seconds.
    """

    def __init__(
        self,
        forward: Progress | None,
        stage: str,
        *,
        started_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._forward = forward
        self._clock = clock
        self._stage = stage
        self._since = clock() if started_s is None else started_s
        self._seconds: dict[str, float] = {}

    def __call__(self, stage: str, fraction: float) -> None:
        """Says that `fraction` of `stage` is done."""
        if stage != self._stage:
            self._close(stage)
        if self._forward is not None:
            self._forward(stage, fraction)

    def finish(self) -> dict[str, float]:
        """Ends the last stage and returns the seconds of each."""
        self._close("")
        return {stage: round(seconds, 4) for stage, seconds in self._seconds.items()}

    def _close(self, next_stage: str) -> None:
        now = self._clock()
        self._seconds[self._stage] = self._seconds.get(self._stage, 0.0) + now - self._since
        self._stage, self._since = next_stage, now

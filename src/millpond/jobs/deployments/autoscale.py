"""How many replicas a load needs. Pure; the time and the readings are passed in.

The rule is the Horizontal Pod Autoscaler's: for each target, replicas x value / target, rounded up; the largest counts.
A replica that does not say is taken as idle when it would mean more replicas, and as loaded when it would mean fewer.
Called by the keeper, which owns one `Autoscaler` for each version that has a rule.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence

from millpond.api.deployment import AutoscaleSpec

_ROUNDING = 1e-9
_MOST = 1e9  # replicas; a reading may be any number
Readings = Mapping[str, float]  # by target, of one replica


class Autoscaler:
    """Remembers recommendations for as long as the windows say."""

    def __init__(self, desired: int) -> None:
        self.desired = desired
        self._seen: deque[tuple[float, int]] = deque()

    def decide(self, spec: AutoscaleSpec, replicas: Sequence[Readings | None], waiting: int, now_s: float) -> int:
        """Takes in what the replicas say and returns how many there should be.

        Args:
            spec: The rule.
            replicas: The readings of each ready replica; None: it does not say.
            waiting: Requests that wait for a replica, and that no replica knows of.
            now_s: The time.
        """
        asked = recommend(spec, replicas, waiting, self.desired)
        self._seen.append((now_s, asked))
        longest = max(spec.up_s, spec.down_s)
        while self._seen[0][0] < now_s - longest:
            self._seen.popleft()
        recent = [count for at_s, count in self._seen if at_s >= now_s - spec.up_s]
        long = [count for at_s, count in self._seen if at_s >= now_s - spec.down_s]
        # More only if all of the short window asks for more; fewer only as few as the most of the long one.
        self.desired = max(min(self.desired, max(long)), min(recent))
        self.desired = min(max(self.desired, spec.low), spec.high)
        return self.desired


def recommend(spec: AutoscaleSpec, replicas: Sequence[Readings | None], waiting: int, desired: int) -> int:
    """How many replicas the load of this moment needs."""
    if not replicas:
        first = max(spec.low, desired)
        return min(spec.high, max(first, 1)) if waiting else min(first, spec.high)
    counts = [_needed(name, target, spec.tolerance, replicas, waiting) for name, target in spec.targets.items()]
    return min(max(*counts, spec.low), spec.high)


def _needed(
    name: str, target: float, tolerance: float, replicas: Sequence[Readings | None], waiting: int
) -> int:
    extra = waiting if name in ("queue", "requests") else 0
    said = [readings[name] for readings in replicas if readings is not None and name in readings]
    silent = len(replicas) - len(said)
    total = sum(said) + extra
    ratio = total / (target * len(replicas))
    if ratio < 1 and silent:
        total += silent * target
        ratio = min(1.0, total / (target * len(replicas)))
    if abs(ratio - 1) <= tolerance:
        return len(replicas)
    return math.ceil(min(total / target, _MOST) - _ROUNDING)


def mean_readings(replicas: Sequence[Readings | None], targets: Mapping[str, float]) -> dict[str, float]:
    """The average over the replicas that say, by target; for people."""
    means = {}
    for name in targets:
        said = [readings[name] for readings in replicas if readings is not None and name in readings]
        if said:
            means[name] = round(sum(said) / len(said), 3)
    return means

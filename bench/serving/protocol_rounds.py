"""What the benches of protocols have in common: whose turn it is, processor time, and how sure a difference is."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

T = TypeVar("T")
_DRAWS = 2000
_CUT = 0.1  # of the rounds at each end: a stall of the machine falls on one way


@dataclass(frozen=True, slots=True)
class Difference:
    """What two ways differ by: the middle and the ends of the interval that holds it in 95 of 100 cases."""

    low: float
    middle: float
    high: float

    @property
    def at_least(self) -> float:
        """The size that it has at least."""
        return max(0.0, self.low, -self.high)

    @property
    def at_most(self) -> float:
        """The size that it has at most."""
        return max(abs(self.low), abs(self.high))

    def rounded(self) -> list[float]:
        """As a list, for a report."""
        return [round(value, 2) for value in (self.low, self.middle, self.high)]


def compared(numbers: Mapping[str, Sequence[float]], *, is_share: bool) -> list[Difference]:
    """Every two ways, round by round: in percent where `is_share`, or in the numbers' unit."""
    values = {name: _values(one, is_share=is_share) for name, one in numbers.items()}
    return [_difference(values[one] - values[other]) for one, other in itertools.combinations(values, 2)]


def off_mean(numbers: Mapping[str, Sequence[float]], name: str, *, is_share: bool) -> Difference:
    """One way and the mean of all of a round."""
    values = {other: _values(one, is_share=is_share) for other, one in numbers.items()}
    return _difference(values[name] - np.mean(list(values.values()), axis=0))


def _values(numbers: Sequence[float], *, is_share: bool) -> npt.NDArray[np.float64]:
    values = np.array(numbers, dtype=np.float64)
    return 100.0 * np.log(values) if is_share else values


def _difference(by_round: npt.NDArray[np.float64]) -> Difference:
    drawn = np.random.default_rng(1).integers(0, by_round.size, (_DRAWS, by_round.size))
    low, high = np.quantile(_mean_of_most(by_round[drawn]), (0.025, 0.975))
    return Difference(float(low), float(_mean_of_most(by_round)), float(high))


def _mean_of_most(values: npt.NDArray[np.float64]) -> Any:
    """The mean along the last axis without the largest and smallest."""
    ordered = np.sort(values, axis=-1)
    cut = int(values.shape[-1] * _CUT)
    return ordered[..., cut : values.shape[-1] - cut].mean(axis=-1)


def turned(ways: Sequence[T], number: int) -> list[T]:
    """The ways in the order of a round: another one is first each time, and each follows each of the others in turn.

    What a way does behind its answer falls on the one after it; if that were always the same one, it would pay for it.
    """
    count = len(ways)
    steps = [step for step in range(1, count) if math.gcd(step, count) == 1] or [1]
    step = steps[(number + number // math.lcm(count, len(steps))) % len(steps)]
    return [ways[(number + place * step) % count] for place in range(count)]


def processor_s(pid: int) -> float:
    """Seconds that a process's threads ran; the kernel counts them finer than in ticks here."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(thread.read_text().split()[0]) for thread in threads) / 1e9

"""Whether guessing ahead pays: how many guesses of which sequences the next step shall compute.

Owns what steps of decoding sequences were measured to cost with and without guesses, and a credit that bounds what
guessing may lose. Pure: times are passed in, nothing is random. Knows nothing of where guesses come from. Called by the
engine's speculator before and after each step, and by a simulator with a cost model.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

# Numbers of guesses (and of sequences) whose price is measured apart.
_EDGES = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
_TRIED = (*range(1, 17), *_EDGES[8:])  # numbers of guesses whose gain is worked out
_NEAREST = (0, -1, 1, -2, 2)  # classes whose price may stand in for one that was not measured
_FIRST_VALUES = 3  # of which the least counts
_WEIGHT = 0.2  # of a new value after these
_REFRESH_WEIGHT = 0.5  # of one after a long time
_OUTLIER = 3.0  # times what was expected: the machine was elsewhere
_ENOUGH_OUTLIERS = 3.0  # more than of others, these counted a third: it is so
_FORGIVEN = 1 / 3
_MOST_LOST = 2.0  # steps' time that one step takes from the credit below zero
_BASE_LASTS = 64  # steps; then the time without guesses is measured again
_PRICE_LASTS = 4096  # steps; then a price is doubted
_HIGH_PRICE_LASTS = 64  # where a guess cost clearly more than a sequence: a first try may have found cold caches
_MOST_PLAUSIBLE = 1.2  # times a sequence's share of a step
_HOPED_PRICE = 0.25  # where nothing is known, as many guesses as sequences (or as a small batch) cost this many steps
_SMALL_BATCH = 4
_LEAST_GAIN = 1.03  # in tokens a second, as expected; below it guessing is not worth the doubt
_LOSS_SHARE = 0.01  # of the time may be lost
_MOST_SPENT = 64.0  # steps' time that one call of `spend` takes away at most
_LEAST_CONFIDENCE = 0.05  # a guess less likely than this is never computed


@dataclass(slots=True)
class _Cell:
    """A measured quantity, and the step at which it was measured last."""

    value: float
    step: int
    num_values: int = 1
    num_outliers: float = 0.0


class StepCost:
    """Seconds of steps in which all sequences decode, by the number of sequences and of guesses."""

    __slots__ = ("_base", "_price", "_step")

    def __init__(self) -> None:
        self._base: dict[int, _Cell] = {}  # by number of sequences: seconds without guesses
        self._price: dict[tuple[int, int], _Cell] = {}  # by classes of both numbers: one guess, in steps without
        self._step = 0

    def observe(self, num_sequences: int, num_guesses: int, seconds: float) -> bool:
        """Takes a step's time. False when it is so long that something else must have happened."""
        self._step += 1
        base = self._base.get(num_sequences)
        if not num_guesses:
            if base is None:
                self._base[num_sequences] = _Cell(seconds, self._step)
                return True
            if base.num_values < _FIRST_VALUES:  # the first steps of their kind find cold caches
                base.value, base.num_values, base.step = min(base.value, seconds), base.num_values + 1, self._step
                return True
            weight = _WEIGHT if self._step - base.step < _BASE_LASTS else _REFRESH_WEIGHT
            return self._update(base, seconds, weight, seconds > _OUTLIER * base.value)
        if base is None or base.value <= 0.0:
            return False
        price = (seconds / base.value - 1.0) / num_guesses
        key = (_class_of(num_sequences), _class_of(num_guesses))
        cell = self._price.get(key)
        expected = self.ratio(num_sequences, num_guesses)
        if cell is None:  # a token of a guess costs no more than one of a sequence
            expected = max(expected, 1.0 + num_guesses / num_sequences)
        is_outlier = seconds > _OUTLIER * base.value * expected
        if cell is None:
            cell = self._price[key] = _Cell(_HOPED_PRICE / max(num_sequences, _SMALL_BATCH), self._step)
            if not is_outlier:
                cell.value = price
            return not is_outlier
        if cell.num_values < _FIRST_VALUES and not is_outlier:
            cell.value, cell.num_values, cell.step = min(cell.value, price), cell.num_values + 1, self._step
            return True
        return self._update(cell, price, _WEIGHT if self._is_fresh(cell, num_sequences) else 1.0, is_outlier)

    def base(self, num_sequences: int) -> float | None:
        """Seconds of a step without guesses; None when they have to be measured, for the first time or again."""
        cell = self._base.get(num_sequences)
        if cell is None or cell.num_values < _FIRST_VALUES or self._step - cell.step >= _BASE_LASTS:
            return None
        return cell.value

    def last_base(self, num_sequences: int) -> float | None:
        """As `base`, however old."""
        cell = self._base.get(num_sequences)
        return None if cell is None else cell.value

    def ratio(self, num_sequences: int, num_guesses: int) -> float:
        """How many steps without guesses a step with them costs; hopeful where nothing was measured of late."""
        batch, kind = _class_of(num_sequences), _class_of(num_guesses)
        for distance in _NEAREST:
            cell = self._price.get((batch, kind + distance))
            if cell is not None and self._is_fresh(cell, num_sequences):
                return 1.0 + max(cell.value, 0.0) * num_guesses
        return 1.0 + _HOPED_PRICE * num_guesses / max(num_sequences, _SMALL_BATCH)

    def _is_fresh(self, price: _Cell, num_sequences: int) -> bool:
        """Whether a price is believed."""
        is_doubtful = price.num_values < _FIRST_VALUES and price.value * num_sequences > _MOST_PLAUSIBLE
        return self._step - price.step < (_HIGH_PRICE_LASTS * price.num_values if is_doubtful else _PRICE_LASTS)

    def _update(self, cell: _Cell, value: float, weight: float, is_outlier: bool) -> bool:
        if is_outlier:
            cell.num_outliers = min(cell.num_outliers + 1.0, _ENOUGH_OUTLIERS)
            if cell.num_outliers < _ENOUGH_OUTLIERS:
                return False
        else:
            cell.num_outliers = max(cell.num_outliers - _FORGIVEN, 0.0)
        cell.value += weight * (value - cell.value)
        cell.step = self._step
        return True


class SpeculationPolicy:
    """Chooses how many guesses to compute, so that it is faster than none or at least not slower.

    Two rules. A step computes as many guesses as promise the most tokens a second: their confidence says what they
    bring, measured steps what they cost. And guessing has a credit: a hundredth of the time of every step, and what
    guessing gained, up to a few steps' worth; what it loses is taken from there, and without credit there are no
    guesses. So hopes that were wrong cost a hundredth at most, whatever the confidence says.

    Args:
        max_guesses: Most guesses for one sequence.
        first_credit: How many steps' time guessing may lose before it gained anything.
        most_credit: How many steps' time of earlier gains it may lose again.
    """

    __slots__ = ("_credit", "_first_credit", "_is_started", "_max_guesses", "_most_credit", "cost")

    def __init__(self, max_guesses: int, *, first_credit: float = 1.0, most_credit: float = 4.0) -> None:
        self.cost = StepCost()
        self._max_guesses = max_guesses
        self._first_credit = first_credit
        self._most_credit = most_credit
        self._credit = 0.0  # seconds
        self._is_started = False

    def can_pay(self, num_sequences: int) -> bool:
        """Whether guesses are allowed now, and would be worth their price if all of them were right."""
        if self.cost.base(num_sequences) is None or self._credit <= 0.0:
            return False
        for count in _TRIED:
            if num_sequences + count > _LEAST_GAIN * num_sequences * self.cost.ratio(num_sequences, count):
                return True
            if count >= num_sequences * self._max_guesses:
                break
        return False

    def choose(self, num_sequences: int, confidences: Sequence[float]) -> list[int]:
        """How many guesses of each sequence the next step computes.

        Args:
            num_sequences: All that decode in the step.
            confidences: For sequences that have guesses, how likely the next one is right.
        """
        counts = [0] * len(confidences)
        base = self.cost.base(num_sequences)
        if base is None or self._credit <= 0.0:
            return counts
        offers: list[tuple[float, int]] = []
        for index, confidence in enumerate(confidences):
            likely = confidence
            for _ in range(self._max_guesses):
                if likely < _LEAST_CONFIDENCE:
                    break
                offers.append((likely, index))
                likely *= confidence
        if sum(likely for likely, _ in offers) <= (_LEAST_GAIN - 1.0) * num_sequences:
            return counts
        offers.sort(reverse=True)
        for _, index in offers[: self._find_best(num_sequences, offers)]:
            counts[index] += 1
        return counts

    def observe(self, num_sequences: int, num_guesses: int, num_accepted: int, seconds: float) -> None:
        """Takes what a step of decoding sequences cost and brought, with or without guesses."""
        is_usual = self.cost.observe(num_sequences, num_guesses, seconds)
        base = self.cost.last_base(num_sequences)
        if not is_usual or base is None:
            return
        if not self._is_started:
            self._is_started = True
            self._credit = self._first_credit * base
        self._credit += _LOSS_SHARE * min(seconds, base)
        if num_guesses:
            lowest = min(self._credit, -_MOST_LOST * base)
            self._credit += base * num_accepted / num_sequences - (seconds - base)
            self._credit = max(self._credit, lowest)
        self._credit = min(self._credit, self._most_credit * base)

    def saved_seconds(self, num_sequences: int, confidence: float) -> float:
        """Seconds that guesses are expected to save for each token of a sequence; 0 where they are not allowed now.

        Args:
            num_sequences: All that decode.
            confidence: How likely the next guess of any of them is right.
        """
        base = self.cost.last_base(num_sequences)
        if base is None or self._credit <= 0.0 or confidence < _LEAST_CONFIDENCE:
            return 0.0
        gain, expected = 1.0, 1.0
        for count in range(1, self._max_guesses + 1):
            expected += confidence**count
            gain = max(gain, expected / self.cost.ratio(num_sequences, count * num_sequences))
        return base * (1.0 - 1.0 / gain) / num_sequences if gain >= _LEAST_GAIN else 0.0

    def spend(self, num_sequences: int, seconds: float) -> None:
        """Takes time that went into guessing beside the steps themselves; an outlier is not its fault."""
        base = self.cost.last_base(num_sequences)
        if base is not None:
            self._credit -= min(seconds, _MOST_SPENT * base)

    def _find_best(self, num_sequences: int, offers: Sequence[tuple[float, int]]) -> int:
        """The number of offers, given likeliest first, that promises the most tokens a second."""
        best, best_gain = 0, _LEAST_GAIN
        expected, count = float(num_sequences), 0
        for edge in (*_TRIED, len(offers)):
            last = min(edge, len(offers))
            expected += sum(likely for likely, _ in offers[count:last])
            count = last
            gain = expected / (num_sequences * self.cost.ratio(num_sequences, count))
            if gain > best_gain:
                best, best_gain = count, gain
            if count == len(offers):
                break
        return best


def _class_of(count: int) -> int:
    return bisect_right(_EDGES, count)

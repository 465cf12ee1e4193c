"""Counters, gauges and histograms, and the Prometheus text format (0.0.4) they are read in.

Owns numbers and their text; does not know what is counted (see `metrics.py`). Written for one event loop: no locks, and
one bisect per observation, because a histogram is fed on every token of every stream. Label values are bounded: past
`MAX_SERIES` combinations a metric counts under `other`, so that no client can grow the page.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from typing import Literal

MAX_SERIES = 256
OVERFLOW = "other"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

MetricKind = Literal["counter", "gauge", "histogram"]


class Metric:
    """One metric family: a name, a sentence of help, and a value per combination of label values."""

    def __init__(self, kind: MetricKind, name: str, help: str, labels: tuple[str, ...] = ()) -> None:
        self.kind = kind
        self.name = name
        self.help = help
        self.labels = labels
        self._values: dict[tuple[str, ...], float] = {} if labels else {(): 0.0}

    def add(self, amount: float = 1.0, *labels: str) -> None:
        """Adds to the value of these label values."""
        values = self._values
        try:
            values[labels] += amount
        except KeyError:
            key = self._key(labels)
            values[key] = values.get(key, 0.0) + amount

    def set(self, value: float, *labels: str) -> None:
        """Sets the value of these label values."""
        self._values[self._key(labels)] = value

    def value(self, *labels: str) -> float:
        """Returns the value of these label values, 0 where there is none yet."""
        return self._values.get(labels, 0.0)

    def samples(self) -> Iterator[str]:
        """Yields the lines of the text format, header excluded."""
        for key, value in self._values.items():
            yield f"{self.name}{_label_text(self.labels, key)} {_number(value)}"

    def _key(self, labels: tuple[str, ...]) -> tuple[str, ...]:
        assert len(labels) == len(self.labels), f"{self.name} has labels {self.labels}"
        if labels in self._values or len(self._values) < MAX_SERIES:
            return labels
        return (OVERFLOW,) * len(labels)


class Histogram:
    """How often a value fell at or below each of `bounds`, and the sum of all, per combination of label values."""

    kind: MetricKind = "histogram"

    def __init__(self, name: str, help: str, bounds: tuple[float, ...], labels: tuple[str, ...] = ()) -> None:
        assert bounds == tuple(sorted(bounds)), "bounds ascend"
        self.name = name
        self.help = help
        self.labels = labels
        self._bounds = bounds
        self._counts: dict[tuple[str, ...], list[int]] = {}
        self._sums: dict[tuple[str, ...], float] = {}
        if not labels:
            self._begin(())

    def under(self, name: str, help: str) -> Histogram:
        """Returns the same numbers under another name: what is observed in one is in both."""
        other = Histogram(name, help, self._bounds, self.labels)
        other._counts, other._sums = self._counts, self._sums
        return other

    @property
    def count(self) -> int:
        """How many values were observed."""
        return sum(sum(counts) for counts in self._counts.values())

    def observe(self, value: float, *labels: str) -> None:
        """Takes one value in."""
        counts = self._counts.get(labels)
        if counts is None:
            assert len(labels) == len(self.labels), f"{self.name} has labels {self.labels}"
            labels = labels if len(self._counts) < MAX_SERIES else (OVERFLOW,) * len(labels)
            self._begin(labels)
            counts = self._counts[labels]
        counts[bisect_left(self._bounds, value)] += 1
        self._sums[labels] += value

    def samples(self) -> Iterator[str]:
        """Yields the lines of the text format, header excluded."""
        names = (*self.labels, "le")
        for labels, counts in self._counts.items():
            running = 0
            for bound, count in zip((*self._bounds, math.inf), counts, strict=True):
                running += count
                yield f"{self.name}_bucket{_label_text(names, (*labels, _number(bound)))} {running}"
            yield f"{self.name}_sum{_label_text(self.labels, labels)} {_number(self._sums[labels])}"
            yield f"{self.name}_count{_label_text(self.labels, labels)} {running}"

    def _begin(self, labels: tuple[str, ...]) -> None:
        self._counts.setdefault(labels, [0] * (len(self._bounds) + 1))
        self._sums.setdefault(labels, 0.0)


def render(metrics: Iterable[Metric | Histogram]) -> str:
    """Returns the page a scraper reads."""
    lines: list[str] = []
    for metric in metrics:
        lines.append(f"# HELP {metric.name} {_escape_help(metric.help)}")
        lines.append(f"# TYPE {metric.name} {metric.kind}")
        lines.extend(metric.samples())
    return "\n".join(lines) + "\n"


def _label_text(names: tuple[str, ...], values: tuple[str, ...]) -> str:
    if not names:
        return ""
    pairs = ",".join(f'{name}="{_escape_value(value)}"' for name, value in zip(names, values, strict=True))
    return f"{{{pairs}}}"


def _escape_help(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n")


def _escape_value(text: str) -> str:
    return _escape_help(text).replace('"', '\\"')


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return str(int(value)) if value == int(value) and abs(value) < 1e15 else repr(float(value))

"""Metrics that models publish themselves, by the process that counts them.

A family's value for a set of labels is the sum over the processes of its model. Bounded: a model that makes up labels
stops being counted, not the server.
"""

from __future__ import annotations

from collections.abc import Iterator

_MAX_SERIES = 4096
Key = tuple[str, tuple[tuple[str, str], ...]]


class ModelMetrics:
    """What the models of one server have published."""

    def __init__(self) -> None:
        self._families: dict[str, tuple[str, str]] = {}
        self._values: dict[Key, dict[int, float]] = {}

    def publish(
        self,
        family: str,
        kind: str,
        description: str,
        *,
        source: int,
        labels: dict[str, str],
        value: float | None,
    ) -> None:
        """Sets the value that one process counts; None takes it away."""
        key = (family, tuple(sorted(labels.items())))
        if value is None:
            values = self._values.get(key, {})
            values.pop(source, None)
            if not values:
                self._values.pop(key, None)
            return
        if key not in self._values and len(self._values) >= _MAX_SERIES:
            return
        self._families.setdefault(family, (kind, description))
        self._values.setdefault(key, {})[source] = value

    def lines(self) -> Iterator[str]:
        """Yields the lines of the text format."""
        for family, (kind, description) in sorted(self._families.items()):
            keys = sorted(key for key in self._values if key[0] == family)
            if keys:
                yield f"# HELP {family} {' '.join(description.split())}"
                yield f"# TYPE {family} {kind}"
            for key in keys:
                labels = ",".join(f'{name}="{escape(value)}"' for name, value in key[1])
                yield f"{family}{{{labels}}} {sum(self._values[key].values()):g}"


def escape(value: str) -> str:
    """Returns a label's value as the text format wants it."""
    return value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")

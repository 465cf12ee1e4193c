"""`MetricFamily` and `Metric`: numbers of the model on the server's metrics port.

A metric lives in the worker that made it and is published whenever it changes. The server adds up what the replicas of
a model publish under the same labels.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping

from millpond.compat.triton_python_backend_utils.connection import CONNECTION
from millpond.compat.triton_python_backend_utils.errors import TritonModelException
from millpond.serve.workers import wire


class MetricKind(enum.Enum):
    """What may happen to a metric."""

    COUNTER = "counter"
    GAUGE = "gauge"


class MetricFamily:
    """Metrics of one name and kind.

    Args:
        name: In the exposition.
        description: Its help text.
        kind: A counter only grows; a gauge goes both ways.
    """

    COUNTER = MetricKind.COUNTER
    GAUGE = MetricKind.GAUGE

    def __init__(self, name: str, description: str, kind: MetricKind) -> None:
        self.name = name
        self.description = description
        self.kind = kind
        self._metrics: dict[tuple[tuple[str, str], ...], Metric] = {}

    def Metric(self, labels: Mapping[str, str] | None = None) -> Metric:
        """Returns the metric with these labels; the same one for the same labels."""
        chosen = {str(name): str(value) for name, value in (labels or {}).items()}
        key = tuple(sorted(chosen.items()))
        if key not in self._metrics:
            self._metrics[key] = Metric(self, chosen)
        return self._metrics[key]


class Metric:
    """One number; made by `MetricFamily.Metric`."""

    def __init__(self, family: MetricFamily, labels: dict[str, str]) -> None:
        self._family = family
        self._labels = labels
        self._value = 0.0
        self._publish()

    def increment(self, value: float) -> None:
        """Adds to it.

        Raises:
            TritonModelException: A counter was to go down.
        """
        if self._family.kind is MetricKind.COUNTER and value < 0:
            raise TritonModelException("Failed to increment metric value: a counter cannot go down")
        self._value += value
        self._publish()

    def set(self, value: float) -> None:
        """Sets it.

        Raises:
            TritonModelException: It is a counter.
        """
        if self._family.kind is MetricKind.COUNTER:
            raise TritonModelException("Failed to set metric value: a counter can only be incremented")
        self._value = float(value)
        self._publish()

    def value(self) -> float:
        """Returns it, as this replica knows it."""
        return self._value

    def _publish(self) -> None:
        family = self._family
        CONNECTION.host.publish(
            wire.MetricUpdate(family.name, family.kind.value, family.description, self._labels, self._value)
        )

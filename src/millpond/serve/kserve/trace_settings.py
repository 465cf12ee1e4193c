"""Trace settings of a server and of its models, as clients may read and change them.

A model has the server's value for everything that was not set for it. All values go over the wire as texts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from millpond.serve.kserve.settings import TritonSettings
from millpond.serve.servables.errors import ServableError

_NUMBER = re.compile(r"\s*[+-]?[0-9]+")
LEVELS = ("OFF", "TIMESTAMPS", "TENSORS", "MIN", "MAX")
_MIN_MAX = {"MIN": "TIMESTAMPS", "MAX": "TIMESTAMPS"}


@dataclass(frozen=True, slots=True)
class TraceValues:
    """What is traced; None is the server's value."""

    trace_level: tuple[str, ...] | None = None
    trace_rate: int | None = None
    trace_count: int | None = None
    log_frequency: int | None = None


@dataclass(frozen=True, slots=True)
class Sampled:
    """A request that is traced.

    Attributes:
        levels: What is recorded.
        log_frequency: How many traces a file takes; 0 is all.
        group: The model whose settings chose it, "" for the server's.
    """

    levels: tuple[str, ...]
    log_frequency: int
    group: str


@dataclass(slots=True)
class _Progress:
    """How far settings have come: how many requests they saw, and how many traces are left."""

    num_seen: int
    num_left: int


class TraceSettings:
    """The trace settings of one server.

    Args:
        settings: With what the command line said.
    """

    def __init__(self, settings: TritonSettings) -> None:
        self._file = settings.trace_file
        self._first = TraceValues(
            settings.trace_level, settings.trace_rate, settings.trace_count, settings.log_frequency
        )
        self._server = self._first
        self._models: dict[str, TraceValues] = {}
        self._progress: dict[str, _Progress] = {}
        self.is_on = False  # whether any request may be traced
        self._restart("")

    def take(self, model: str) -> Sampled | None:
        """Counts a request of a model and says whether it is traced."""
        group = model if model in self._models else ""
        values, progress = self.values(group), self._progress[group]
        levels, rate = values.trace_level or (), values.trace_rate
        if "OFF" in levels or not rate or not progress.num_left:
            return None
        progress.num_seen += 1
        if progress.num_seen % rate:
            return None
        if progress.num_left > 0:
            progress.num_left -= 1
        return Sampled(levels, values.log_frequency or 0, group)

    def values(self, model: str) -> TraceValues:
        """Returns what holds for a model, or for the server when it is ""."""
        own = self._models.get(model)
        if own is None:
            return self._server
        changes = {f.name: getattr(own, f.name) for f in fields(own) if getattr(own, f.name) is not None}
        return replace(self._server, **changes)

    def document(self, model: str) -> dict[str, object]:
        """Returns the settings of a model, or of the server when it is ""."""
        values = self.values(model)
        return {
            "trace_level": list(values.trace_level or ()),
            "trace_rate": str(values.trace_rate),
            "trace_count": str(self._progress[model if model in self._models else ""].num_left),
            "log_frequency": str(values.log_frequency),
            "trace_file": self._file,
            "trace_mode": "triton",
        }

    def update(self, model: str, changes: Mapping[str, object]) -> None:
        """Changes settings; None takes a value back to what it was, and keys that are none are ignored.

        Raises:
            ServableError: A value makes no sense; nothing is changed then.
        """
        base = self._first if not model else TraceValues()
        values = self._server if not model else self._models.get(model, TraceValues())
        for name, value in changes.items():
            if name == "trace_file":
                raise ServableError("unsupported", "trace file location can not be updated through network protocol")
            if name == "trace_level":
                values = replace(values, trace_level=base.trace_level if value is None else read_levels(value))
            elif name in ("trace_rate", "trace_count", "log_frequency"):
                number = getattr(base, name) if value is None else _number(name, value)
                values = _with_number(values, name, number)
        if model:
            self._models[model] = values
        else:
            self._server = values
        inheriting = [name for name, own in self._models.items() if own.trace_count is None] if not model else []
        for name in (model, *inheriting):
            self._restart(name)

    def _restart(self, model: str) -> None:
        count = self.values(model).trace_count
        self._progress[model] = _Progress(0, -1 if count is None else count)
        self.is_on = any("OFF" not in (self.values(name).trace_level or ()) for name in ("", *self._models))


def _with_number(values: TraceValues, name: str, number: int | None) -> TraceValues:
    if name == "trace_rate":
        return replace(values, trace_rate=number)
    if name == "trace_count":
        return replace(values, trace_count=number)
    return replace(values, log_frequency=number)


def read_levels(value: object) -> tuple[str, ...]:
    """Returns the levels that a value of `trace_level` names.

    Raises:
        ServableError: There is no such level.
    """
    given: list[str] = list(value) if isinstance(value, list | tuple) else [str(value)]
    for level in given:
        if level not in LEVELS:
            raise ServableError("invalid_argument", f"attempt to set unknown trace level '{level}'")
    levels = tuple(dict.fromkeys(_MIN_MAX.get(level, level) for level in given))
    if "OFF" in levels and len(levels) > 1:
        raise ServableError("invalid_argument", "Expect only one trace level 'OFF' is specified")
    return levels or ("OFF",)


def _leading(given: str | int) -> int | None:
    """The number that a text begins with, as C reads it."""
    found = _NUMBER.match(str(given))
    return None if found is None else int(found[0])


def _number(name: str, value: object) -> int:
    given = value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
    least = -1 if name == "trace_count" else 0
    try:
        number = _leading(given) if isinstance(given, str | int) and not isinstance(given, bool) else None
    except ValueError:
        number = None
    if number is None:
        raise ServableError("invalid_argument", f"Unable to parse '{name}', got: {given}")
    if not least <= number < 1 << 63:
        raise ServableError("invalid_argument", f"Unable to parse '{name}', the value is out of range: {given}")
    return number

"""`DecisionLog`: every event and decision as one line of JSON, and the replay that proves them equal.

Owns the format. The scheduler is a function of its calls, so the events and step times bring every decision back. Lines
go to a callable, never to a file from here: the caller owns the disk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec

from millpond.base.errors import MillpondError
from millpond.jobs.scheduling import types
from millpond.jobs.scheduling.scheduler import Scheduler
from millpond.jobs.scheduling.turn import SchedulerLimits
from millpond.jobs.scheduling.types import Decision, Event


class ReplayError(MillpondError):
    """A log is damaged, or the scheduler decides otherwise than it says."""

    code = "replay_differs"


class DecisionLog:
    """Writes records as they happen.

    Args:
        write: Takes one line without its end.
    """

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write

    def begin(self, limits: SchedulerLimits) -> None:
        """Writes the head of a log; without it a replay takes the default limits."""
        self._write(msgspec.json.encode({"limits": limits}))

    def record_event(self, event: Event, now_s: float) -> None:
        """An event was applied."""
        self._write(msgspec.json.encode({"t": now_s, "event": type(event).__name__, "body": _finite(event)}))

    def record_step(self, decisions: list[Decision], now_s: float) -> None:
        """A step was made."""
        self._write(encode_step(decisions, now_s))


@dataclass(frozen=True, slots=True)
class ReplayStats:
    """What a replay went through."""

    events: int
    steps: int
    decisions: int


def encode_step(decisions: Iterable[Decision], now_s: float) -> bytes:
    """One step as a line."""
    named = [{"kind": type(decision).__name__, "body": _finite(decision)} for decision in decisions]
    return msgspec.json.encode({"t": now_s, "step": named})


def replay(lines: Iterable[bytes]) -> ReplayStats:
    """Drives a fresh scheduler through a log.

    Raises:
        ReplayError: A line is damaged or a decision differs.
    """
    events = steps = decisions = 0
    scheduler = Scheduler()
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = msgspec.json.decode(line)
            if "limits" in record:
                scheduler = Scheduler(msgspec.convert(record["limits"], SchedulerLimits))
                continue
            now_s = float(record["t"])
            event = decode_event(record["event"], record["body"]) if "event" in record else None
        except (msgspec.MsgspecError, KeyError, TypeError, ValueError) as error:
            raise ReplayError(f"Line {number} of the log is damaged: {error}", fix="Replay a whole log.") from None
        if event is not None:
            scheduler.apply(event, now_s)
            events += 1
            continue
        made = scheduler.step(now_s)
        steps += 1
        decisions += len(made)
        again = encode_step(made, now_s)
        if again != line.rstrip(b"\n"):
            raise ReplayError(f"Line {number}: the log says {line[:400]!r}, the scheduler {again[:400]!r}.")
    return ReplayStats(events, steps, decisions)


def decode_event(kind: str, body: dict[str, Any]) -> Event:
    """Builds an event from its record."""
    kinds: dict[str, type[Any]] = {item.__name__: item for item in types.Event.__args__}
    if kind not in kinds:
        raise ReplayError(f"The log has an unknown event {kind!r}.", fix="Replay it with the version that wrote it.")
    event: Event = msgspec.convert(_infinite(body), kinds[kind])
    return event


def _finite(value: object) -> Any:
    """Plain data without infinities, which JSON lacks: they become the text "inf"."""
    return _swap(msgspec.to_builtins(value), float("inf"), "inf")


def _infinite(value: object) -> Any:
    return _swap(value, "inf", float("inf"))


def _swap(value: Any, old: object, new: object) -> Any:
    if isinstance(value, dict):
        return {key: _swap(item, old, new) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_swap(item, old, new) for item in value]
    if isinstance(value, frozenset | set):
        return sorted(value)
    return new if type(value) is type(old) and value == old else value

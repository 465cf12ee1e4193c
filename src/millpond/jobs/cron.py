"""Cron schedules: five fields, names of months and days, steps, ranges, and the @ words.

Pure: the time and its zone are passed in. A day matches as in cron: when both day fields are restricted, either one is
enough. Called by the loaders (to check) and by the controller (to find the next run).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_DAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_FIELDS = (("minute", 0, 59), ("hour", 0, 23), ("day", 1, 31), ("month", 1, 12), ("weekday", 0, 7))
_WORDS = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}
_HORIZON_DAYS = 366 * 8 + 1  # 29 February comes back within eight years


@dataclass(frozen=True, slots=True)
class Schedule:
    """A parsed schedule."""

    minutes: frozenset[int]
    hours: frozenset[int]
    days: frozenset[int]
    months: frozenset[int]
    weekdays: frozenset[int]  # 0 is Sunday
    is_day_free: bool
    is_weekday_free: bool

    def next_after(self, moment: datetime) -> datetime | None:
        """The first minute after `moment` that matches, in its zone; None when there is none, as on 30 February."""
        start = moment.replace(second=0, microsecond=0) + timedelta(minutes=1)
        day = start.replace(hour=0, minute=0)
        for _ in range(_HORIZON_DAYS):
            if self._has_day(day):
                for hour in sorted(self.hours):
                    for minute in sorted(self.minutes):
                        found = day.replace(hour=hour, minute=minute)
                        if found >= start:
                            return found
            day += timedelta(days=1)
        return None

    def _has_day(self, day: datetime) -> bool:
        if day.month not in self.months:
            return False
        in_month, in_week = day.day in self.days, day.isoweekday() % 7 in self.weekdays
        return in_month and in_week if self.is_day_free or self.is_weekday_free else in_month or in_week


def parse_schedule(text: str) -> Schedule:
    """Reads "*/5 9-17 * * mon-fri" or "@daily".

    Raises:
        ValueError: It is no schedule; the message says which field.
    """
    fields = _WORDS.get(text.strip().casefold(), text).split()
    if len(fields) != len(_FIELDS):
        raise ValueError(f"{text!r} has {len(fields)} fields, not 5 (minute hour day month weekday)")
    sets = [_parse_field(field, *bounds) for field, bounds in zip(fields, _FIELDS, strict=True)]
    return Schedule(
        minutes=sets[0],
        hours=sets[1],
        days=sets[2],
        months=sets[3],
        weekdays=frozenset(day % 7 for day in sets[4]),
        is_day_free=fields[2].startswith("*"),
        is_weekday_free=fields[4].startswith("*"),
    )


def _parse_field(text: str, name: str, low: int, high: int) -> frozenset[int]:
    values: set[int] = set()
    for part in text.split(","):
        span, slash, step_text = part.partition("/")
        first, dash, last = span.partition("-")
        if slash and not (step_text.isascii() and step_text.isdigit() and 1 <= int(step_text[:9]) <= high + 1):
            raise ValueError(f"the step {step_text!r} of the {name} is not a number from 1 to {high + 1}")
        if span == "*":
            start, stop = low, high
        else:
            start = _number(first, name, low, high)
            stop = _number(last, name, low, high) if dash else high if slash else start
        if start > stop:
            raise ValueError(f"the {name} {span!r} ends before it starts")
        values.update(range(start, stop + 1, int(step_text) if slash else 1))
    return frozenset(values)


def _number(text: str, name: str, low: int, high: int) -> int:
    words = _MONTHS if name == "month" else _DAYS if name == "weekday" else ()
    if text.casefold() in words:
        return words.index(text.casefold()) + low
    if not (text.isascii() and text.isdigit()) or not low <= int(text[:9]) <= high:
        raise ValueError(f"the {name} {text!r} is not a number from {low} to {high}")
    return int(text)

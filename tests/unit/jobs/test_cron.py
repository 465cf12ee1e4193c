from __future__ import annotations

from datetime import UTC, datetime

import pytest

from millpond.jobs.cron import parse_schedule

FRIDAY = datetime(2026, 11, 20, 10, 7, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("* * * * *", "2026-11-20T10:08"),
        ("*/5 * * * *", "2026-11-20T10:10"),
        ("7 10 * * *", "2026-11-21T10:07"),
        ("0 9-17/4 * * mon-fri", "2026-11-20T13:00"),
        ("30 6 * * 0", "2026-11-22T06:30"),
        ("30 6 * * 7", "2026-11-22T06:30"),
        ("0 0 1 jan *", "2027-01-01T00:00"),
        ("0 0 29 2 *", "2028-02-29T00:00"),
        ("0 0 13 * fri", "2026-11-27T00:00"),  # either day field is enough
        ("0 0 */2 * fri", "2026-11-27T00:00"),  # a day field that starts with a star must match as well
        ("@weekly", "2026-11-22T00:00"),
    ],
)
def test_the_next_run(schedule: str, expected: str) -> None:
    found = parse_schedule(schedule).next_after(FRIDAY)
    assert found is not None
    assert found.isoformat(timespec="minutes")[:16] == expected


def test_a_day_that_never_comes_has_no_run() -> None:
    assert parse_schedule("0 0 30 2 *").next_after(FRIDAY) is None


@pytest.mark.parametrize("text", ["", "* * * *", "60 * * * *", "5-1 * * * *", "*/0 * * * *", "x * * * *", "* * 0 * *"])
def test_what_is_no_schedule_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        parse_schedule(text)

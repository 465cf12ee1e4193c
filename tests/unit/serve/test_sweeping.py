"""A sweep looks every second, and gives clients time again when the process stood still."""

from __future__ import annotations

import asyncio

import pytest

from millpond.serve.sweeping import sweep


class _Loop:
    """Time as the test makes it pass."""

    def __init__(self, sleeps: list[float]) -> None:
        self.now = 100.0
        self.sleeps = sleeps

    def time(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        if not self.sleeps:
            raise asyncio.CancelledError
        self.now += seconds + self.sleeps.pop(0)


@pytest.mark.parametrize(
    ("late", "seen"),
    [
        ([0, 0, 0.5], [101, 102, 103.5]),
        ([0, 20, *[0] * 21], [101, 142, 143]),
        ([0, 500, *[0] * 61], [101, 662, 663]),
    ],
)
async def test_a_stall_is_forgiven_for_as_long_as_it_took(
    monkeypatch: pytest.MonkeyPatch, late: list[float], seen: list[float]
) -> None:
    loop, looked = _Loop(late), list[float]()
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    monkeypatch.setattr(asyncio, "sleep", loop.sleep)
    with pytest.raises(asyncio.CancelledError):
        await sweep(looked.append)
    assert looked == seen


async def test_a_fault_of_one_look_is_told_and_the_next_one_comes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    loop, looked = _Loop([0, 0, 0]), list[float]()

    def look(now: float) -> None:
        looked.append(now)
        if len(looked) == 2:
            raise KeyError("broken")

    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    monkeypatch.setattr(asyncio, "sleep", loop.sleep)
    with pytest.raises(asyncio.CancelledError):
        await sweep(look)
    assert looked == [101, 102, 103]
    assert "broken" in caplog.text

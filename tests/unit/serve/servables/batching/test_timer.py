"""Timers that ring at the earliest of the moments they were set to, by the kernel's clock or by the loop's."""

from __future__ import annotations

import asyncio
import itertools
import os
import time
from collections.abc import Callable

import pytest

from millpond.serve.servables.batching.alarm import Alarm
from millpond.serve.servables.batching.timer import Timer

Clock = Callable[[], int]
MS = 1_000_000


def other_clock() -> int:
    """The machine's, but the timer cannot know that."""
    return time.monotonic_ns()


class Bell:
    """Notes when it rang, by the machine's clock."""

    def __init__(self) -> None:
        self.rung: list[int] = []
        self.event = asyncio.Event()

    def ring(self) -> None:
        self.rung.append(time.monotonic_ns())
        self.event.set()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("clock", [time.monotonic_ns, other_clock])
async def test_it_rings_once_and_not_before_the_earliest_moment(clock: Clock) -> None:
    bell = Bell()
    rung, event = bell.rung, bell.event
    timer = Timer(bell.ring, clock)
    now_ns = clock()
    for delay_ms in (80, 3, 40, 900_000):
        timer.at(now_ns + delay_ms * MS)
    async with asyncio.timeout(60):
        await event.wait()
    assert rung[0] >= now_ns + 3 * MS
    await asyncio.sleep(0.1)  # the later moments were forgotten
    assert len(rung) == 1
    event.clear()
    timer.at(clock() - MS)  # it has passed
    async with asyncio.timeout(60):
        await event.wait()
    assert len(rung) == 2
    timer.stop()


@pytest.mark.parametrize("clock", [time.monotonic_ns, other_clock])
async def test_a_stopped_timer_is_silent_until_it_is_set_again(clock: Clock) -> None:
    before = descriptors()
    event = asyncio.Event()
    timer = Timer(event.set, clock)
    timer.at(clock() + 2 * MS)
    timer.stop()
    assert descriptors() == before
    await asyncio.sleep(0.02)
    assert not event.is_set()
    timer.at(clock() + 2 * MS)
    async with asyncio.timeout(60):
        await event.wait()
    timer.stop()
    assert descriptors() == before


async def test_what_is_set_in_its_own_callback_rings_again() -> None:
    rung: list[int] = []
    event = asyncio.Event()

    def ring() -> None:
        rung.append(time.monotonic_ns())
        if len(rung) < 5:
            timer.at(rung[-1] + MS)
        else:
            event.set()

    timer = Timer(ring, time.monotonic_ns)
    timer.at(time.monotonic_ns() + MS)
    async with asyncio.timeout(60):
        await event.wait()
    assert all(later >= earlier + MS for earlier, later in itertools.pairwise(rung))
    timer.stop()


async def test_an_alarm_set_anew_after_it_rang_rings_at_the_new_moment_only() -> None:
    bell = Bell()
    rung = bell.rung
    alarm = Alarm(bell.ring)
    alarm.set(time.monotonic_ns() - MS)  # has rung when the loop looks next
    anew_ns = time.monotonic_ns() + 5 * MS
    alarm.set(anew_ns)
    async with asyncio.timeout(60):
        await bell.event.wait()
    assert len(rung) == 1
    assert rung[0] >= anew_ns
    alarm.close()

"""What the gateway does between requests."""

from __future__ import annotations

import asyncio
import time
from itertools import pairwise

import pytest

from millpond.serve.gateway import Gateway
from millpond.serve.settings import ServeSettings


async def test_the_loop_turns_between_pieces_of_a_bursts_work_that_take_long() -> None:
    gateway = Gateway(None, ServeSettings())
    seen: list[str] = []

    def work() -> None:
        time.sleep(0.003)
        seen.append("work")

    async def other() -> None:
        while len(seen) < 7:
            seen.append("loop")
            await asyncio.sleep(0)

    beside = asyncio.create_task(other())
    await asyncio.gather(*(gateway.in_turn(work) for _ in range(3)))
    await beside
    gateway.close()
    assert seen.count("work") == 3
    assert all(pair != ("work", "work") for pair in pairwise(seen))


async def test_work_that_fails_gives_the_turn_on() -> None:
    gateway = Gateway(None, ServeSettings())

    def fail() -> None:
        raise ValueError("no text")

    with pytest.raises(ValueError, match="no text"):
        await gateway.in_turn(fail)
    assert await gateway.in_turn(lambda: 1) == 1
    gateway.close()

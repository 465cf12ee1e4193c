"""Instances that crash: who gets the error, who waits, and when the next attempt comes. In virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millpond.serve.servables.backend import ModelFolder, Replies
from millpond.serve.servables.config import InstanceGroup
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.limits import ServableLimits
from millpond.serve.servables.messages import InferRequest
from millpond.serve.servables.registry import Servables
from millpond.serve.servables.restarts import Backoff
from tests.support.memory_backend import MemoryBackend, MemoryInstance, echo, echo_config, request_of
from tests.support.virtual_time import clock, run


@settings(deadline=None)
@given(lives=st.lists(st.floats(0, 120), max_size=30))
def test_waits_double_until_an_instance_has_lived_long_enough(lives: list[float]) -> None:
    backoff = Backoff(0.25, 30.0, 60.0)
    now, in_a_row = 0.0, 0
    for life in lives:
        backoff.started(now)
        now += life
        if life >= 60.0:
            in_a_row = 0
        wait = backoff.next_wait_s(now)
        assert wait == (0.0 if not in_a_row else min(30.0, 0.25 * 2 ** (in_a_row - 1)))
        in_a_row += 1
        now += wait


async def crash_on_negative(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
    await asyncio.sleep(0.01)
    if requests[0].inputs["X"].array[0] < 0:
        raise ServableError("unavailable", "the worker died of signal 9")
    await echo(instance, requests, replies)


class Room:
    def __init__(self, *, count: int = 1) -> None:
        self.backend = MemoryBackend(crash_on_negative)
        self.servables = Servables({"memory": self.backend}, ServableLimits(), clock=clock)
        self.count = count

    async def __aenter__(self) -> Room:
        config = replace(echo_config("m"), instance_groups=(InstanceGroup("g", self.count),))
        await self.servables.add(config, ModelFolder(None, 1))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.servables.close()

    async def ask(self, number: int) -> str:
        try:
            return str((await self.servables.infer(request_of("m", [number]))).outputs["X"].array[0])
        except ServableError as error:
            return error.message


def test_a_crash_fails_its_own_request_and_the_others_wait_for_the_restart() -> None:
    async def main() -> None:
        async with Room() as room:
            results = await asyncio.gather(*(room.ask(n) for n in (1, -2, 3, 4)))
            assert results == ["1", "the worker died of signal 9", "3", "4"]
            assert room.backend.instances[0].num_restarts == 1
            assert clock() - int(1000e9) < 1e9

    run(main())


def test_a_second_instance_serves_on_while_one_is_down() -> None:
    async def main() -> None:
        async with Room(count=2) as room:
            room.backend.restart_failures += ["no memory"] * 3
            assert await room.ask(-1) == "the worker died of signal 9"
            assert [await room.ask(n) for n in range(4)] == ["0", "1", "2", "3"]
            assert room.servables.find("m").state == "READY"
            await asyncio.sleep(10)
            assert [len(instance.batches) > 1 for instance in room.backend.instances].count(True) == 1
            await asyncio.gather(*(room.ask(n) for n in range(4)))
            assert all(len(instance.batches) > 1 for instance in room.backend.instances)

    run(main())


def test_a_servable_that_cannot_come_back_is_unavailable_with_its_reason_until_it_does() -> None:
    async def main() -> None:
        async with Room() as room:
            room.backend.restart_failures += ["no memory", "still no memory"]
            crashed, waiting = asyncio.create_task(room.ask(-1)), asyncio.create_task(room.ask(1))
            assert await crashed == "the worker died of signal 9"
            assert await waiting == "no memory"
            (entry,) = room.servables.index()
            assert (entry.state, entry.reason) == ("UNAVAILABLE", "no memory")
            with pytest.raises(ServableError) as caught:
                await room.servables.infer(request_of("m", version=1))
            assert caught.value.code == "unavailable"
            assert await room.ask(1) == "no memory"
            await asyncio.sleep(0.3)
            assert room.servables.index()[0].reason == "still no memory"
            await asyncio.sleep(1.0)
            assert room.servables.index()[0].state == "READY"
            assert await room.ask(5) == "5"

    run(main())


def test_a_servable_can_be_removed_while_it_is_down() -> None:
    async def main() -> None:
        async with Room() as room:
            room.backend.restart_failures += ["no memory"] * 1000
            await room.ask(-1)
            await room.servables.remove("m")
            await room.servables.settled()
            assert room.backend.instances[0].is_closed
            num_restarts = room.backend.instances[0].num_restarts
            await asyncio.sleep(100)
            assert room.backend.instances[0].num_restarts == num_restarts

    run(main())


def test_work_that_does_not_end_is_cut_off_when_its_servable_is_removed() -> None:
    async def main() -> None:
        async with Room() as room:

            async def endless(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
                await asyncio.sleep(1e6)

            room.backend.work = endless
            asked = [asyncio.create_task(room.ask(n)) for n in range(2)]
            await asyncio.sleep(1)
            begun = clock()
            await room.servables.remove("m")
            results = await asyncio.gather(*asked)
            assert all("unloaded" in result for result in results)
            await room.servables.settled()
            assert room.servables.limits.drain_s == pytest.approx((clock() - begun) / 1e9)

    run(main())


def test_a_back_end_that_raises_something_else_says_no_secrets(caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> str:
        async with Room() as room:

            async def broken(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
                raise KeyError("/secret/path")

            room.backend.work = broken
            return await room.ask(1)

    assert run(main()) == "The servable's back end failed; the server's log says why."
    assert "/secret/path" in caplog.text

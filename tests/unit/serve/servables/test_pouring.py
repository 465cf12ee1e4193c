"""Responses that are written where they come about: in order, within bounds, and only as long as somebody waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from millpond.serve.room import Room
from millpond.serve.servables.backend import ModelFolder, Paced, Replies
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.limits import ServableLimits
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.pouring import Poured
from millpond.serve.servables.registry import Servables
from tests.support.memory_backend import MemoryBackend, MemoryInstance, Work, echo_config, request_of
from tests.support.small_room import SmallRoom
from tests.support.waiting import eventually


def numbered(count: int, *, ends: bool = True) -> list[InferResponse]:
    return [
        InferResponse("echo", 1, parameters={"n": number}, final=ends and number == count - 1)
        for number in range(count)
    ]


def numbers(responses: Sequence[InferResponse]) -> list[object]:
    return [response.parameters["n"] for response in responses]


@asynccontextmanager
async def served(work: Work, limit: int = 1000) -> AsyncIterator[Servables]:
    servables = Servables({"memory": MemoryBackend(work)}, ServableLimits(max_unread_responses=limit))
    await servables.add(replace(echo_config(), decoupled=True), ModelFolder(None, 1))
    try:
        yield servables
    finally:
        await servables.close()


def hasty(count: int) -> Work:
    """A back end that does not ask whether there is room."""

    async def work(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
        for response in numbered(count):
            replies.send(0, response)

    return work


async def test_responses_are_written_in_order_as_there_is_room() -> None:
    room = SmallRoom(3)
    written: list[InferResponse] = []

    def write(response: InferResponse) -> None:
        assert not room.is_full
        room.put()
        written.append(response)

    async with served(hasty(20)) as servables:
        task = asyncio.create_task(servables.pour(request_of("echo"), write, room))
        await eventually(lambda: len(written) == 3)
        assert not task.done()
        while not task.done():
            room.empty()
            await asyncio.sleep(0)
        await task
    assert numbers(written) == list(range(20))


async def test_who_leaves_too_much_unread_gets_an_error_and_nothing_after_it() -> None:
    room = SmallRoom(1)
    written: list[InferResponse] = []

    def write(response: InferResponse) -> None:
        room.put()
        written.append(response)

    async with served(hasty(20), limit=5) as servables:
        task = asyncio.create_task(servables.pour(request_of("echo"), write, room))
        await eventually(lambda: len(written) == 1)
        room.size = 100
        room.empty()
        await task
    assert numbers(written[:-1]) == list(range(6))
    assert written[-1].final
    assert written[-1].error is not None
    assert "read faster" in written[-1].error.message


@pytest.mark.parametrize("reads", ["poured", "iterated"])
async def test_a_back_end_that_can_wait_is_told_when_there_is_room(reads: str) -> None:
    most_ahead = 0
    sent = 0
    taken: list[InferResponse] = []

    async def work(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
        nonlocal most_ahead, sent
        assert isinstance(replies, Paced)
        room = replies.room(0)
        assert isinstance(room, Room)
        for response in numbered(500):
            await room.drained()
            sent += 1
            most_ahead = max(most_ahead, sent - len(taken))
            replies.send(0, response)

    async with served(work, limit=100) as servables:
        if reads == "iterated":
            async for response in servables.stream(request_of("echo")):
                taken.append(response)
                await asyncio.sleep(0)
        else:
            room = SmallRoom(10)

            def write(response: InferResponse) -> None:
                room.put()
                taken.append(response)

            task = asyncio.create_task(servables.pour(request_of("echo"), write, room))
            while not task.done():
                await asyncio.sleep(0)
                room.empty()
            await task
    assert numbers(taken) == list(range(500))
    assert most_ahead <= 65


async def test_giving_up_cancels_the_request() -> None:
    async def work(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
        replies.send(0, numbered(1, ends=False)[0])
        await eventually(lambda: instance.cancelled == list(requests))
        replies.send(0, numbered(1)[0])

    written: list[InferResponse] = []
    async with served(work) as servables:
        task = asyncio.create_task(servables.pour(request_of("echo"), written.append, SmallRoom(10)))
        await eventually(lambda: bool(written))
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await eventually(lambda: servables.find("echo").num_open == 0)
        assert len(written) == 1
        assert servables.find("echo").statistics.failures["CANCELED"] == 1


async def test_what_writing_raises_ends_the_request() -> None:
    def write(response: InferResponse) -> None:
        raise KeyError("broken")

    async with served(hasty(3)) as servables:
        with pytest.raises(KeyError, match="broken"):
            await servables.pour(request_of("echo"), write, SmallRoom(10))
        with pytest.raises(ServableError, match="not found"):
            await servables.pour(request_of("other"), write, SmallRoom(10))


async def test_there_is_no_room_until_what_was_kept_is_written() -> None:
    room = SmallRoom(1)
    written: list[InferResponse] = []

    def write(response: InferResponse) -> None:
        room.put()
        written.append(response)

    poured = Poured(write, room, 100)
    responses = numbered(4)
    poured.respond(responses[0])
    poured.respond(responses[1])  # kept
    waits = asyncio.create_task(poured.drained())  # it hears of room before `run` does
    await asyncio.sleep(0)
    running = asyncio.create_task(poured.run())
    await asyncio.sleep(0)
    room.empty()
    await eventually(lambda: len(written) == 2)
    assert not waits.done()
    room.empty()
    await asyncio.wait_for(waits, 20)
    assert not poured.is_full
    for response in responses[2:]:
        room.empty()
        poured.respond(response)
    await asyncio.wait_for(running, 20)
    assert numbers(written) == list(range(4))


@pytest.mark.parametrize("num_kept", [0, 2])
async def test_a_client_that_goes_is_told_to_who_asked_and_frees_the_back_end(num_kept: int) -> None:
    gone = asyncio.Event()

    class Gone(SmallRoom):
        async def drained(self) -> None:
            await gone.wait()
            raise ConnectionResetError

    room = Gone(1)
    went_on = asyncio.Event()

    async def work(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
        assert isinstance(replies, Paced)
        for response in numbered(1 + num_kept, ends=False):
            replies.send(0, response)
        back = replies.room(0)
        assert back is not None
        await back.drained()
        assert not back.is_full
        went_on.set()
        await eventually(lambda: instance.cancelled == list(requests))
        replies.send(0, numbered(1)[0])

    written: list[InferResponse] = []

    def write(response: InferResponse) -> None:
        room.put()
        written.append(response)

    async with served(work) as servables:
        task = asyncio.create_task(servables.pour(request_of("echo"), write, room))
        await eventually(lambda: bool(written))
        gone.set()
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(task, 20)
        await asyncio.wait_for(went_on.wait(), 20)
        await eventually(lambda: servables.find("echo").num_open == 0)
        assert servables.find("echo").statistics.failures["CANCELED"] == 1
    assert len(written) == 1

"""Events reach a place that may be full: all of them, in order, and nobody waits for ever."""

from __future__ import annotations

import asyncio

import pytest

from millpond.api.request import OutputEvent, Request, SamplingParams
from millpond.base.errors import QueueFullError
from millpond.inference.engine.messages import SequenceOutput
from millpond.inference.engine.output import RequestText
from millpond.inference.engine.stream import RequestStream, Route
from millpond.inference.text import Tokenizer
from millpond.serve.pouring import pour
from tests.support.byte_tokenizer import make_byte_tokenizer
from tests.support.fake_executor import EOS, VOCAB_SIZE
from tests.support.small_room import SmallRoom

TOKENIZER = Tokenizer(make_byte_tokenizer(VOCAB_SIZE, EOS))


@pytest.fixture
def route() -> Route:
    request = Request("r", [1, 2], SamplingParams(max_tokens=500))
    return Route("0", request, RequestText(request, TOKENIZER))


class Taken:
    """Takes events into a room until one says that it is the last."""

    def __init__(self, room: SmallRoom) -> None:
        self.events: list[OutputEvent] = []
        self.room = room

    def __call__(self, event: OutputEvent) -> bool:
        assert not self.room.is_full
        self.room.put()
        self.events.append(event)
        return event.finish_reason is not None

    @property
    def text(self) -> str:
        return "".join(event.text for event in self.events)


def begin(route: Route, taken: Taken) -> asyncio.Task[None]:
    return asyncio.create_task(pour(RequestStream(route, lambda _: None), taken, taken.room))


def push(route: Route, text: str, *, ends: bool = False) -> None:
    """A step that says `text`."""
    route.push(SequenceOutput("0", 0, TOKENIZER.encode(text), "length" if ends else None))


async def test_nothing_is_lost_whatever_the_room(route: Route) -> None:
    taken = Taken(SmallRoom(3))
    task = begin(route, taken)
    for number in range(400):
        push(route, chr(65 + number % 26), ends=number == 399)
        if number % 7 == 0:
            await asyncio.sleep(0)
        if number % 50 == 0:
            taken.room.empty()
    while not task.done():
        taken.room.empty()
        await asyncio.sleep(0)
    await task
    assert taken.text == "".join(chr(65 + number % 26) for number in range(400))
    assert len(taken.events) < 100


async def test_an_event_is_taken_in_the_turn_in_which_it_comes(route: Route) -> None:
    taken = Taken(SmallRoom(100))
    task = begin(route, taken)
    await asyncio.sleep(0)
    for count in range(1, 5):
        push(route, "A")
        assert len(taken.events) == count
    push(route, "B", ends=True)
    await task


@pytest.mark.parametrize("is_early", [True, False])
async def test_a_request_that_the_engine_refuses_ends_with_its_error(route: Route, is_early: bool) -> None:
    taken = Taken(SmallRoom(1))
    if is_early:
        route.refuse(QueueFullError("full"))
    task = begin(route, taken)
    await asyncio.sleep(0)
    if not is_early:
        route.refuse(QueueFullError("full"))
    with pytest.raises(QueueFullError):
        async with asyncio.timeout(5):
            await task
    assert taken.events == []


async def test_what_taking_raises_ends_it(route: Route) -> None:
    def take(event: OutputEvent) -> bool:
        raise KeyError(event.text)

    task = asyncio.create_task(pour(RequestStream(route, lambda _: None), take, SmallRoom(1)))
    await asyncio.sleep(0)
    push(route, "A")
    push(route, "B")
    with pytest.raises(KeyError, match="A"):
        await task
    push(route, "C")  # kept for whoever closes the stream
    assert not route.is_finished


async def test_a_full_room_wakes_the_task_once_there_is_room(route: Route) -> None:
    taken = Taken(SmallRoom(1))
    task = begin(route, taken)
    await asyncio.sleep(0)
    push(route, "A")
    push(route, "B")
    push(route, "C", ends=True)
    await asyncio.sleep(0)
    assert taken.text == "A"
    taken.room.empty()
    await task
    assert [event.text for event in taken.events] == ["A", "BC"]

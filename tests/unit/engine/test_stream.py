"""A request's two readers: an iterator that is woken, and a sink that is given events where they come about."""

from __future__ import annotations

import pytest

from millpond.api.request import ErrorInfo, OutputEvent, Request, SamplingParams
from millpond.base.errors import MillpondError, QueueFullError
from millpond.inference.engine.messages import SequenceOutput
from millpond.inference.engine.output import RequestText
from millpond.inference.engine.stream import RequestStream, Route
from millpond.inference.text import Tokenizer
from tests.support.byte_tokenizer import make_byte_tokenizer
from tests.support.fake_executor import EOS, VOCAB_SIZE


class Sink:
    """Keeps what it is given; full after `room` events."""

    def __init__(self, room: int = 1000) -> None:
        self.events: list[OutputEvent] = []
        self.refusal: MillpondError | None = None
        self.room = room

    @property
    def is_full(self) -> bool:
        return len(self.events) >= self.room

    @is_full.setter
    def is_full(self, value: bool) -> None:
        raise AssertionError(f"a route set is_full to {value}")

    def take(self, event: OutputEvent) -> None:
        assert not self.is_full
        self.events.append(event)

    def refuse(self, error: MillpondError) -> None:
        self.refusal = error


@pytest.fixture
def route() -> Route:
    request = Request("r", [1, 2], SamplingParams(n=2, max_tokens=50))
    return Route("0", request, RequestText(request, Tokenizer(make_byte_tokenizer(VOCAB_SIZE, EOS))))


def push(route: Route, *token_ids: int, index: int = 0) -> None:
    route.push(SequenceOutput("0", index, list(token_ids)))


def test_a_sink_gets_each_event_at_once(route: Route) -> None:
    sink = Sink()
    route.forward(sink)
    for token in (65, 66, 67):
        push(route, token)
        assert sink.events[-1].token_ids == [token]


def test_what_was_kept_comes_before_what_is_new(route: Route) -> None:
    push(route, 65)
    push(route, 66)
    push(route, 70, index=1)
    sink = Sink()
    route.forward(sink)
    push(route, 67)
    assert [(event.index, event.token_ids) for event in sink.events] == [(0, [65, 66]), (1, [70]), (0, [67])]


def test_a_full_sink_costs_one_event_a_choice_until_it_has_room(route: Route) -> None:
    sink = Sink(room=1)
    route.forward(sink)
    for token in range(65, 85):
        push(route, token)
        push(route, token, index=1)
    assert len(sink.events) == 1
    assert len(route._buffers) == 2
    sink.room = 3
    route.resume()
    assert [(event.index, event.token_ids) for event in sink.events[1:]] == [
        (1, list(range(65, 85))),
        (0, list(range(66, 85))),
    ]


@pytest.mark.parametrize("comes_first", ["sink", "refusal"])
def test_a_sink_hears_that_the_engine_refused(route: Route, comes_first: str) -> None:
    sink, error = Sink(), QueueFullError("full")
    if comes_first == "refusal":
        route.refuse(error)
    route.forward(sink)
    if comes_first == "sink":
        route.refuse(error)
    assert sink.refusal is error
    assert route.is_finished


async def test_events_are_kept_for_the_iterator_once_the_sink_is_taken_away(route: Route) -> None:
    stream = RequestStream(route, lambda closed: closed.fail("cancelled", ErrorInfo("cancelled", "")))
    sink = Sink()
    stream.forward(sink)
    push(route, 65)
    stream.forward(None)
    push(route, 66)
    assert [event.token_ids for event in sink.events] == [[65]]
    assert (await anext(stream)).token_ids == [66]
    await stream.aclose()

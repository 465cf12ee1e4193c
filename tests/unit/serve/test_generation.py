"""Many prompts as one stream of events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from millpond.api.request import OutputEvent, Request, SamplingParams
from millpond.base.errors import QueueFullError, RequestError
from millpond.inference.text import TextModel
from millpond.serve.generation import Generation, merged
from millpond.serve.metrics import ServeMetrics
from tests.support.pushed_engine import PushedEngine


class Source:
    """Events of one request, and whether they were closed."""

    def __init__(self, name: str, count: int, error: Exception | None = None) -> None:
        self.name = name
        self.is_closed = False
        self._left = count
        self._error = error

    def __aiter__(self) -> AsyncIterator[OutputEvent]:
        return self

    async def __anext__(self) -> OutputEvent:
        await asyncio.sleep(0)
        if self._left:
            self._left -= 1
            return OutputEvent(self.name, 0, str(self._left), [1])
        if self._error is not None:
            raise self._error
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.is_closed = True


@pytest.mark.parametrize("num_sources", [1, 2, 5])
async def test_every_event_comes_once_and_in_its_sources_order(num_sources: int) -> None:
    sources = [Source(str(number), 200) for number in range(num_sources)]
    texts: list[list[str]] = [[] for _ in sources]
    async for number, event in merged(list(sources)):
        assert event.request_id == str(number)
        texts[number].append(event.text)
    assert texts == [[str(left) for left in reversed(range(200))]] * num_sources
    assert all(source.is_closed for source in sources)


@pytest.mark.parametrize("num_sources", [1, 3])
async def test_an_error_of_one_ends_all(num_sources: int) -> None:
    sources = [Source(str(number), 10_000) for number in range(num_sources)]
    sources[-1] = Source("last", 3, QueueFullError("full"))
    with pytest.raises(QueueFullError):
        async for _ in merged(list(sources)):
            pass
    assert all(source.is_closed for source in sources)


async def test_closing_closes_every_source() -> None:
    sources = [Source("a", 100), Source("b", 100)]
    events = merged(list(sources))
    await anext(events)
    await events.aclose()
    assert [source.is_closed for source in sources] == [True, True]


async def test_what_was_begun_and_never_read_is_cancelled(text: TextModel) -> None:
    engine, metrics = PushedEngine(text), ServeMetrics()
    requests = [Request(str(number), [1, 2], SamplingParams(max_tokens=5)) for number in range(2)]
    generation = Generation(engine, metrics, requests, 0.0)
    generation.begin()
    generation.begin()
    assert len(engine.routes) == 2
    assert metrics.prompt_tokens.value() == 4
    await generation.aclose()
    assert engine.cancelled == engine.routes
    assert metrics.finished.value("cancelled") == 2


async def test_a_request_that_is_refused_frees_those_before_it(text: TextModel) -> None:
    engine = PushedEngine(text)
    good, bad = Request("a", [1], SamplingParams(max_tokens=5)), Request("b", [], SamplingParams(max_tokens=5))
    generation = Generation(engine, ServeMetrics(), [good, bad], 0.0)
    with pytest.raises(RequestError):
        generation.begin()
    await generation.aclose()
    assert len(engine.routes) == 1
    assert engine.cancelled == engine.routes

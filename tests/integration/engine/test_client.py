"""The client on a real engine process whose executor is a fake: what callers see while all goes well."""

from __future__ import annotations

import asyncio
import gc
import itertools

import pytest

from millpond.api.request import OutputEvent, Request, SamplingParams, TokenLogprob
from millpond.base.errors import ContextLengthError, QueueFullError, RequestError
from millpond.inference.engine.beam import BeamSearch
from millpond.inference.engine.client import AsyncEngine
from millpond.inference.engine.stream import OutputStream
from millpond.inference.sampling.draw import Scratch
from millpond.inference.sampling.logprobs import token_logprob
from tests.support.fake_executor import EOS, VOCAB_SIZE, expected_tokens, logits_after
from tests.support.waiting import eventually

pytestmark = pytest.mark.asyncio(loop_scope="module")
NUMBERS = itertools.count()


def request(prompt: list[int], **changes: object) -> Request:
    deadline_s = changes.pop("deadline_s", None)
    params = {"temperature": 0.0, "max_tokens": 20, "ignore_eos": True} | changes
    return Request(f"r{next(NUMBERS)}", prompt, SamplingParams(**params), deadline_s=deadline_s)  # type: ignore[arg-type]


def prompt(seed: int, length: int = 10) -> list[int]:
    return [(seed * 31 + i * 7) % EOS for i in range(length)]


async def collect(stream: OutputStream) -> list[OutputEvent]:
    return [event async for event in stream]


def tokens_of(events: list[OutputEvent], index: int = 0) -> list[int]:
    return [token for event in events if event.index == index for token in event.token_ids]


def text_of(events: list[OutputEvent]) -> str:
    return "".join(event.text for event in events)


async def is_idle(engine: AsyncEngine) -> None:
    await eventually(lambda: engine.stats.num_free_blocks == engine.stats.num_blocks and engine.num_requests == 0)


async def test_a_stream_tells_the_tokens_and_their_text(engine: AsyncEngine) -> None:
    asked = request(prompt(1))
    events = await collect(engine.generate(asked))
    assert tokens_of(events) == expected_tokens(prompt(1), 20, eos=None)
    assert text_of(events) == engine.text.tokenizer.decode(tokens_of(events))
    assert {event.request_id for event in events} == {asked.request_id}
    assert [event.finish_reason for event in events if event.finish_reason] == ["length"]


async def test_sixty_four_streams_at_once_are_each_whole(engine: AsyncEngine) -> None:
    prompts = [prompt(i, 3 + i) for i in range(64)]
    results = await asyncio.gather(*(collect(engine.generate(request(p))) for p in prompts))
    for asked, events in zip(prompts, results, strict=True):
        assert tokens_of(events) == expected_tokens(asked, 20, eos=None)
    await is_idle(engine)


async def test_each_choice_ends_once(engine: AsyncEngine) -> None:
    events = await collect(engine.generate(request(prompt(2), n=4, temperature=1.0, seed=3)))
    assert sorted(event.index for event in events if event.finish_reason) == [0, 1, 2, 3]
    assert all(len(tokens_of(events, index)) == 20 for index in range(4))


async def test_a_stop_string_ends_the_stream_and_frees_the_engine(engine: AsyncEngine) -> None:
    said = engine.text.tokenizer.decode(expected_tokens(prompt(3), 20, eos=None))
    stop = said[8:11]
    events = await collect(engine.generate(request(prompt(3), stop=(stop,), max_tokens=200)))
    assert text_of(events) == said[: said.index(stop)]
    assert (events[-1].finish_reason, events[-1].stop_reason) == ("stop", stop)
    await is_idle(engine)


async def test_closing_a_stream_frees_its_blocks_and_ends_it(engine: AsyncEngine) -> None:
    stream = engine.generate(request(prompt(4), max_tokens=240))
    await anext(stream)
    await stream.aclose()
    await is_idle(engine)
    assert [event.finish_reason async for event in stream][-1] == "cancelled"


async def test_closing_before_the_engine_heard_of_it_is_fine(engine: AsyncEngine) -> None:
    stream = engine.generate(request(prompt(4)))
    await stream.aclose()
    await is_idle(engine)


async def test_dropping_a_stream_cancels_it(engine: AsyncEngine) -> None:
    stream = engine.generate(request(prompt(5), max_tokens=240))
    await anext(stream)
    del stream
    gc.collect()
    await is_idle(engine)


async def test_a_reader_that_falls_behind_gets_everything_in_few_events(engine: AsyncEngine) -> None:
    stream = engine.generate(request(prompt(6), n=2, max_tokens=100, logprobs=1))
    await eventually(lambda: engine.num_requests == 0)
    events = await collect(stream)
    assert len(events) == 2
    for event in events:
        assert event.token_ids == expected_tokens(prompt(6), 100, eos=None)
        assert event.text == engine.text.tokenizer.decode(event.token_ids)
        assert event.logprobs is not None
        assert [token.token_id for token in event.logprobs] == event.token_ids


async def test_a_deadline_ends_the_stream_with_its_reason(engine: AsyncEngine) -> None:
    events = await collect(engine.generate(request(prompt(7), max_tokens=240, deadline_s=0.05)))
    assert events[-1].finish_reason == "deadline"
    assert events[-1].error is not None
    assert events[-1].error.code == "deadline_exceeded"
    assert 0 < len(tokens_of(events)) < 240


async def test_past_the_queue_a_request_is_refused_at_once(engine: AsyncEngine) -> None:
    places = engine.info.max_sequences + engine.info.max_queue
    streams = [engine.generate(request(prompt(i))) for i in range(places)]
    with pytest.raises(QueueFullError) as refused:
        engine.generate(request(prompt(0)))
    assert refused.value.retry_after_s >= 1
    assert all([(await collect(stream))[-1].finish_reason == "length" for stream in streams])
    await collect(engine.generate(request(prompt(0))))


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        (Request("w", [], SamplingParams()), RequestError),
        (Request("w", [VOCAB_SIZE], SamplingParams()), RequestError),
        (Request("w", [-1], SamplingParams()), RequestError),
        (Request("w", [1] * 250, SamplingParams(max_tokens=7)), ContextLengthError),
        (Request("w", [1] * 256, SamplingParams(max_tokens=None)), ContextLengthError),
        (Request("w", [1], SamplingParams(temperature=-1.0)), RequestError),
        (Request("w", [1], SamplingParams(n=100)), RequestError),
        (Request("w", [1], SamplingParams(), deadline_s=0.0), RequestError),
        (Request("w", [1], SamplingParams(beam_width=2, stop=("x",))), RequestError),
    ],
)
async def test_what_can_never_succeed_is_refused_before_any_work(
    engine: AsyncEngine, wrong: Request, error: type[Exception]
) -> None:
    with pytest.raises(error):
        engine.generate(wrong)
    assert engine.num_requests == 0


async def test_no_max_tokens_means_the_rest_of_the_context(engine: AsyncEngine) -> None:
    events = await collect(engine.generate(request(prompt(8), max_tokens=None)))
    assert len(tokens_of(events)) == engine.info.max_model_len - 10


async def test_what_the_engine_refuses_is_raised_to_the_reader(engine: AsyncEngine) -> None:
    """The fake engine has no grammars, which the gateway cannot know."""
    from millpond.api.request import GrammarSpec

    stream = engine.generate(request(prompt(9), grammar=GrammarSpec("regex", "a")))
    with pytest.raises(RequestError, match="grammar"):
        await anext(stream)
    await is_idle(engine)


async def test_one_id_may_be_used_twice_at_a_time(engine: AsyncEngine) -> None:
    asked = [Request("same", prompt(i), SamplingParams(temperature=0.0, ignore_eos=True)) for i in (1, 2)]
    results = await asyncio.gather(*(collect(engine.generate(one)) for one in asked))
    for one, events in zip(asked, results, strict=True):
        assert tokens_of(events) == expected_tokens(one.prompt_token_ids, 16, eos=None)


async def test_a_second_request_finds_the_first_ones_prefix(engine: AsyncEngine) -> None:
    for hit in (0, 96):
        events = await collect(engine.generate(request(prompt(77, 100))))
        assert events[0].num_cached_tokens == hit


async def test_beams_over_the_client_are_those_of_the_search_itself(engine: AsyncEngine) -> None:
    params = SamplingParams(beam_width=3, n=2, max_tokens=6, logprobs=0)
    search, scratch = BeamSearch(params, [EOS]), Scratch(VOCAB_SIZE)

    def judge(tokens: list[int]) -> TokenLogprob:
        row = logits_after(tokens)
        return token_logprob(row, int(row.argmax()), search.num_candidates, scratch)

    while not search.is_done:
        search.advance([judge([*prompt(11), *beam.token_ids]) for beam in search.beams])
    events = await collect(engine.generate(Request("beams", prompt(11), params)))
    assert [tuple(event.token_ids) for event in events] == [beam.token_ids for beam in search.best(2)]
    assert [event.finish_reason for event in events] == [beam.finish_reason for beam in search.best(2)]
    assert events[0].logprobs is not None
    assert sum(token.logprob for token in events[0].logprobs) == pytest.approx(search.best(1)[0].logprob)
    await is_idle(engine)


async def test_a_beam_search_that_is_closed_leaves_nothing_behind(engine: AsyncEngine) -> None:
    stream = engine.generate(Request("beams", prompt(12), SamplingParams(beam_width=4, max_tokens=200)))
    reading = asyncio.create_task(anext(stream))  # type: ignore[arg-type]
    await eventually(lambda: engine.num_requests > 0)
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await stream.aclose()
    await is_idle(engine)

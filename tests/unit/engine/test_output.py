"""Token ids to events: text, stop strings, merged deltas."""

from __future__ import annotations

import random

import pytest
from tokenizers import Tokenizer as RawTokenizer

from millpond.api.request import ErrorInfo, OutputEvent, Request, SamplingParams, TokenLogprob
from millpond.inference.engine.messages import SequenceOutput
from millpond.inference.engine.output import EventBuffer, RequestText
from millpond.inference.text import Tokenizer
from tests.support.byte_tokenizer import make_byte_tokenizer

EOS = 299


@pytest.fixture(scope="module")
def raw() -> RawTokenizer:
    return make_byte_tokenizer(300, EOS)


@pytest.fixture
def tokenizer(raw: RawTokenizer) -> Tokenizer:
    return Tokenizer(raw, eos_token_ids=[EOS])


def text_for(tokenizer: Tokenizer, **params: object) -> RequestText:
    return RequestText(Request("r", [1], SamplingParams(**params)), tokenizer)  # type: ignore[arg-type]


def push_all(text: RequestText, token_ids: list[int], finish: str = "length", size: int = 1) -> list[OutputEvent]:
    events = []
    for at in range(0, len(token_ids), size):
        chunk = token_ids[at : at + size]
        reason = finish if at + size >= len(token_ids) else None
        event = text.push(SequenceOutput("r", 0, list(chunk), reason))  # type: ignore[arg-type]
        if event is not None:
            events.append(event)
    return events


def text_of(events: list[OutputEvent]) -> str:
    return "".join(event.text for event in events)


def tokens_of(events: list[OutputEvent]) -> list[int]:
    return [token for event in events for token in event.token_ids]


@pytest.mark.parametrize("size", [1, 3, 100])
def test_the_deltas_make_the_text_whatever_the_cuts(tokenizer: Tokenizer, size: int) -> None:
    said = "a wörd — and 🙂 more"
    events = push_all(text_for(tokenizer), tokenizer.encode(said), size=size)
    assert text_of(events) == said
    assert events[-1].finish_reason == "length"


def test_no_delta_holds_half_a_character(tokenizer: Tokenizer) -> None:
    events = push_all(text_for(tokenizer), tokenizer.encode("é🙂"))
    assert [event.text for event in events] == ["", "é", "", "", "", "🙂"]


@pytest.mark.parametrize(("include", "said"), [(False, "hi"), (True, "hiword280")])
def test_a_stop_token_is_counted_and_shown_only_when_asked_for(tokenizer: Tokenizer, include: bool, said: str) -> None:
    text = text_for(tokenizer, stop_token_ids=(280,), include_stop_str_in_output=include)
    events = push_all(text, [*tokenizer.encode("hi"), 280], "stop")
    assert text_of(events) == said
    assert tokens_of(events)[-1] == 280


@pytest.mark.parametrize(("include", "said"), [(False, "one "), (True, "one STOP")])
@pytest.mark.parametrize("size", [1, 2, 5, 50])
def test_a_stop_string_ends_the_text_wherever_it_is_cut(
    tokenizer: Tokenizer, size: int, include: bool, said: str
) -> None:
    text = text_for(tokenizer, stop=("STOP",), include_stop_str_in_output=include)
    events = push_all(text, tokenizer.encode("one STOP two STOP"), size=size)
    assert text_of(events) == said
    assert (events[-1].finish_reason, events[-1].stop_reason) == ("stop", "STOP")
    assert tokenizer.decode(tokens_of(events)) == "one STOP"
    assert text.is_finished


def test_logprobs_after_the_stop_string_are_not_told(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode("a.b")
    logprobs = [TokenLogprob(token_id, -1.0, 1, []) for token_id in token_ids]
    event = text_for(tokenizer, stop=(".",), logprobs=0).push(SequenceOutput("r", 0, token_ids, logprobs=logprobs))
    assert event is not None
    assert event.logprobs == logprobs[:2]


def test_text_that_only_looked_like_a_stop_string_comes_out_at_the_end(tokenizer: Tokenizer) -> None:
    assert text_of(push_all(text_for(tokenizer, stop=("STOP",)), tokenizer.encode("a STO"))) == "a STO"


def test_a_stop_string_does_not_count_before_min_tokens(tokenizer: Tokenizer) -> None:
    text = text_for(tokenizer, stop=("b",), min_tokens=3, max_tokens=9)
    assert text_of(push_all(text, tokenizer.encode("abababab"))) == "aba"


def test_each_choice_has_its_own_text(tokenizer: Tokenizer) -> None:
    text = text_for(tokenizer, n=2)
    a, b = tokenizer.encode("é")
    assert text.push(SequenceOutput("r", 0, [a])).text == ""  # type: ignore[union-attr]
    assert text.push(SequenceOutput("r", 1, tokenizer.encode("x"), "length")).text == "x"  # type: ignore[union-attr]
    assert text.push(SequenceOutput("r", 0, [b], "length")).text == "é"  # type: ignore[union-attr]
    assert text.is_finished


def test_what_comes_after_the_end_is_dropped(tokenizer: Tokenizer) -> None:
    text = text_for(tokenizer, stop=("x",))
    push_all(text, tokenizer.encode("x"))
    assert text.push(SequenceOutput("r", 0, tokenizer.encode("y"), "length")) is None


def test_failing_ends_every_open_choice_with_the_text_it_had(tokenizer: Tokenizer) -> None:
    text = text_for(tokenizer, n=2, stop=("STOP",))
    text.push(SequenceOutput("r", 1, tokenizer.encode("ST")))
    events = text.fail("error", ErrorInfo("engine_dead", "gone"))
    assert [(event.index, event.text, event.finish_reason) for event in events] == [
        (0, "", "error"),
        (1, "ST", "error"),
    ]
    assert all(event.error is not None and event.error.code == "engine_dead" for event in events)


def test_a_buffer_merges_what_nobody_took_into_one_event() -> None:
    rng = random.Random(0)
    events = [
        OutputEvent("r", 0, f"t{i}", [i], [TokenLogprob(i, -rng.random(), 1, [])], queue_s=0.5 if i == 0 else None)
        for i in range(50)
    ]
    buffer = EventBuffer()
    for event in events[:49]:
        buffer.add(event)
    buffer.add(OutputEvent("r", 0, "t49", [49], events[49].logprobs, finish_reason="stop", stop_reason="x"))
    merged = buffer.take()
    assert merged is not None
    assert merged.text == "".join(event.text for event in events)
    assert merged.token_ids == list(range(50))
    assert merged.logprobs == [token for event in events for token in event.logprobs or ()]
    assert (merged.finish_reason, merged.stop_reason, merged.queue_s) == ("stop", "x", 0.5)
    assert buffer.take() is None


def test_a_buffer_is_empty_after_each_take() -> None:
    buffer = EventBuffer()
    for name in ("a", "b"):
        for _ in range(2):
            buffer.add(OutputEvent("r", 0, name, [1]))
        assert buffer.take() == OutputEvent("r", 0, name * 2, [1, 1])

"""The wire: frames survive any cut, errors keep their type, merging loses nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.api.request import ErrorInfo, Request, SamplingParams, TokenLogprob
from millpond.base.errors import CheckpointError, ConfigError, QueueFullError
from millpond.config.load import make_config
from millpond.inference.engine import messages
from millpond.inference.engine.messages import Cancel, Commands, FrameReader, SequenceOutput


@given(st.lists(st.integers(0, 40), max_size=8), st.integers(1, 9))
def test_frames_come_out_as_they_went_in_wherever_the_reads_are_cut(lengths: list[int], size: int) -> None:
    sent = [Commands(cancel=[Cancel("x" * length)]) for length in lengths]
    stream = b"".join(messages.encode(message) for message in sent)
    reader, decoder = FrameReader(), messages.to_engine_decoder()
    got = [decoder.decode(frame) for at in range(0, len(stream), size) for frame in reader.feed(stream[at : at + size])]
    assert got == sent


def test_a_reader_may_stop_after_any_frame() -> None:
    reader = FrameReader()
    assert next(reader.feed(messages.encode(Commands()) + messages.encode(Commands(cancel=[Cancel("b")])))) != b""
    assert len(list(reader.feed(b""))) == 1


def test_an_absurd_length_breaks_the_connection_and_takes_no_memory() -> None:
    with pytest.raises(ConnectionError, match="limit"):
        list(FrameReader().feed(b"\xff\xff\xff\xff"))


def test_a_request_crosses_the_wire_unchanged() -> None:
    params = SamplingParams(n=2, logit_bias={3: -1.5}, stop=("a", "é"), stop_token_ids=(7,), seed=-1, max_tokens=None)
    request = Request("r", [1, 2, 3], params, priority=-2, deadline_s=1.5, cache_salt="tenant")
    (frame,) = FrameReader().feed(messages.encode(Commands([request])))
    assert messages.to_engine_decoder().decode(frame) == Commands([request])


def test_a_config_crosses_the_wire_unchanged() -> None:
    config = make_config({"model.path": "m", "cache.bytes": 1 << 30, "runtime.deterministic": True})
    (frame,) = FrameReader().feed(messages.encode(messages.hello(config, "/m", 1.0)))
    hello = messages.to_engine_decoder().decode(frame)
    assert isinstance(hello, messages.Hello)
    assert messages.config_of(hello) == config


@pytest.mark.parametrize(
    "error", [ConfigError("a", fix="b", param="c"), CheckpointError("d", fix="e"), MemoryError("f")]
)
def test_an_error_of_loading_arrives_as_what_it_was(error: Exception) -> None:
    arrived = messages.failure_error(messages.describe_failure(error))
    assert type(arrived) is type(error)
    assert str(arrived) == str(error)
    assert getattr(arrived, "param", None) == getattr(error, "param", None)


def test_an_unexpected_error_of_loading_says_what_it_was() -> None:
    arrived = messages.failure_error(messages.describe_failure(ZeroDivisionError("by zero")))
    assert "ZeroDivisionError: by zero" in str(arrived)


def test_an_error_code_becomes_its_class_again() -> None:
    assert isinstance(messages.typed_error(ErrorInfo("queue_full", "full")), QueueFullError)


def test_merged_outputs_say_what_both_said() -> None:
    first = SequenceOutput("r", 0, [1], queue_s=0.5, prompt_logprobs=[None], logprobs=[TokenLogprob(1, -1.0, 1, [])])
    first.merge(SequenceOutput("r", 0, [2], "stop", 2, logprobs=[TokenLogprob(2, -2.0, 1, [])]))
    assert first == SequenceOutput(
        "r",
        0,
        [1, 2],
        "stop",
        2,
        queue_s=0.5,
        prompt_logprobs=[None],
        logprobs=[TokenLogprob(1, -1.0, 1, []), TokenLogprob(2, -2.0, 1, [])],
    )

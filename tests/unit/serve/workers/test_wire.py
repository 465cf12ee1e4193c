"""Frames: however the bytes are cut, the same messages come out."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.serve.workers import wire

MESSAGES: list[wire.ToWorker] = [
    wire.Hello("m", "python", {"a": [1, {"b": None}]}, 16, 1 << 20),
    wire.Execute(3, [wire.RequestWire("m", [wire.TensorWire("x", "INT8", [2], b"ab")], "id", ("y",))], [64]),
    wire.Cancel(3, 0),
    wire.CallReply(1, wire.ResponseWire(0, [], {"p": True, "q": 1.5}, wire.ErrorWire("not_found", "x"))),
    wire.Answer(4, {"inputs": []}, None),
    wire.Freed([0, 128]),
    wire.Close(),
]


@given(st.lists(st.sampled_from(MESSAGES), max_size=8), st.lists(st.integers(1, 60), max_size=40))
def test_frames_survive_any_cut(messages: list[wire.ToWorker], cuts: list[int]) -> None:
    encoder, decoder = msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(wire.ToWorker)
    stream = b"".join(bytes(wire.encode(message, encoder)) for message in messages)
    reader, got, at = wire.FrameReader(), [], 0
    for cut in [*cuts, max(len(stream), 1)]:
        got += [decoder.decode(frame) for frame in reader.feed(stream[at : at + cut])]
        at += cut
    assert got == messages


def test_a_length_beyond_the_limit_breaks_the_connection() -> None:
    with pytest.raises(ConnectionError, match="was announced"):
        list(wire.FrameReader().feed(b"\xff\xff\xff\xff1234"))

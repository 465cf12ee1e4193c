"""Tensors through messages and arenas, and elements against Triton's documented form."""

from __future__ import annotations

import os
import struct

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from millpond.serve.servables.tensors import NUMPY_TYPES, Tensor
from millpond.serve.workers.arena import ArenaReader, ArenaWriter, make_file
from millpond.serve.workers.tensor_wire import TensorPort, decode_elements, encode_elements
from millpond.serve.workers.wire import TensorWire

ARENA = 1 << 22
NUMERIC = sorted(set(NUMPY_TYPES) - {"BYTES"})


def make_ports(inline_bytes: int, num_bytes: int = ARENA) -> tuple[TensorPort, TensorPort]:
    files = [make_file(num_bytes), make_file(num_bytes)]
    try:
        there, back = [(ArenaWriter(file, num_bytes), ArenaReader(file, num_bytes)) for file in files]
    finally:
        for file in files:
            os.close(file)
    one = TensorPort(there[0], back[1], inline_bytes, writable=True)
    other = TensorPort(back[0], there[1], inline_bytes, writable=True)
    return one, other


def through(tensor: Tensor, inline_bytes: int) -> Tensor:
    one, other = make_ports(inline_bytes)
    sent = msgspec.msgpack.decode(msgspec.msgpack.encode(one.pack(tensor)), type=TensorWire)
    assert (sent.offset < 0) == (len(sent.data) > 0 or tensor.array.size == 0)
    got = other.unpack(sent)
    if tensor.datatype != "BYTES" and got.array.size:
        got.array.flat[0] = got.array.flat[0]  # a model may change what it gets
    return got


@given(st.sampled_from(NUMERIC), st.data(), st.sampled_from([0, 64, 1 << 20]))
def test_numbers_pass_bit_for_bit(datatype: str, data: st.DataObject, inline_bytes: int) -> None:
    shape = data.draw(arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5))
    array = data.draw(arrays.arrays(NUMPY_TYPES[datatype], shape))
    got = through(Tensor("x", datatype, array), inline_bytes)
    assert (got.name, got.datatype, got.array.shape) == ("x", datatype, shape)
    assert got.array.tobytes() == array.tobytes()


@given(st.lists(st.binary(max_size=40), max_size=12), st.sampled_from([0, 1 << 20]))
def test_bytes_pass(elements: list[bytes], inline_bytes: int) -> None:
    array = np.empty((len(elements), 1), np.object_)
    array[:, 0] = elements
    got = through(Tensor("x", "BYTES", array), inline_bytes)
    assert got.array.shape == (len(elements), 1)
    assert got.array[:, 0].tolist() == elements


def test_elements_have_lengths_of_four_bytes() -> None:
    array = np.array([[b"ab", "ü"], [b"", 7]], np.object_)
    parts = [b"ab", "ü".encode(), b"", b"7"]
    assert encode_elements(array) == b"".join(struct.pack("<I", len(part)) + part for part in parts)


def test_an_element_longer_than_the_data_is_an_error() -> None:
    with pytest.raises(ValueError, match="the element at byte 5 is longer"):
        decode_elements(struct.pack("<I", 1) + b"a" + struct.pack("<I", 9) + b"b", None)


def test_a_tensor_without_room_travels_in_the_message() -> None:
    one, other = make_ports(16, num_bytes=4096)
    array = np.arange(10_000)
    sent = one.pack(Tensor("x", "INT64", array))
    assert sent.offset == -1
    np.testing.assert_array_equal(other.unpack(sent).array, array)


def test_discarding_and_releasing_give_places_back() -> None:
    one, other = make_ports(0)
    kept, dropped = (one.pack(Tensor("x", "INT8", np.zeros(100, np.int8))) for _ in range(2))
    one.discard([dropped])
    other.unpack(kept)
    one.release(other.reader.take_freed())
    assert one.writer.used_bytes == 0

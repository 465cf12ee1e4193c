"""Tensors of a command line: read with the server's types, packed as the protocol packs them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.utils import deserialize_bytes_tensor, serialize_byte_tensor

from millpond.base.errors import ConfigError
from millpond.cli.client.tensors import as_json, bytes_tensor, pack, read_inputs, show, unpack

DESCRIBED = {"TEXT": ("BYTES", [-1, 1]), "X": ("INT32", [-1, 4]), "F": ("FP32", [1]), "FLAG": ("BOOL", [1])}


def test_a_value_takes_the_models_datatype_and_dimensions() -> None:
    text, x, f, flag = read_inputs(["TEXT=Hello, [you]", "X=[1, 2, 3, 4]", "F=0.5", "FLAG=true"], DESCRIBED)

    assert show(text) == 'TEXT BYTES[1,1] [["Hello, [you]"]]'
    assert (x.array.dtype, x.array.tolist()) == (np.int32, [[1, 2, 3, 4]])
    assert (f.array.dtype, f.array.tolist()) == (np.float32, [0.5])
    assert (flag.array.dtype, flag.array.tolist()) == (np.bool_, [True])


def test_a_list_of_texts_is_a_tensor_of_them() -> None:
    (text,) = read_inputs(['TEXT=[["a"], ["ü"]]'], DESCRIBED)

    assert text.array.tolist() == [[b"a"], ["ü".encode()]]
    assert as_json(text) == [["a"], ["ü"]]


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("X", "NAME=VALUE"),
        ("Y=1", "no input 'Y'"),
        ("X=[1, 2.5]", "cannot be INT32"),
        ("X=one", "cannot be INT32"),
        ("X=[[1], [1, 2]]", "cannot be INT32"),
        ("FLAG=1", "cannot be BOOL"),
    ],
)
def test_a_value_that_does_not_fit_is_refused(flag: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("[", r"\[")):
        read_inputs([flag], DESCRIBED)


@given(st.lists(st.binary(max_size=20), max_size=6))
def test_bytes_are_packed_as_tritons_client_packs_them(values: list[bytes]) -> None:
    tensor = bytes_tensor("T", values, [len(values)])

    raw = pack(tensor)

    assert raw == (serialize_byte_tensor(tensor.array).item() if values else b"")
    assert unpack("T", "BYTES", [len(values)], raw).array.tolist() == values
    assert deserialize_bytes_tensor(raw).tolist() == values


def test_numbers_keep_their_bits() -> None:
    (x,) = read_inputs(["X=[1, -2, 3, 4]"], DESCRIBED)

    assert unpack("X", "INT32", [1, 4], pack(x)).array.tolist() == [[1, -2, 3, 4]]

"""Joining requests into a batch's tensors and giving each its part back."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millpond.serve.servables.batching.merge import merge, pad_rows, split
from millpond.serve.servables.config import BatchTensor, ServableConfig
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest
from millpond.serve.servables.tensors import TensorSpec
from tests.support.memory_backend import tensor

SPEC = TensorSpec("X", "INT32", (-1,))
CONFIG = ServableConfig("m", "memory", (SPEC,), (replace(SPEC, name="Y"),), max_batch_size=64)


def of(*values: object) -> list[InferRequest]:
    return [InferRequest("m", {"X": tensor("X", value)}) for value in values]


@settings(deadline=None)
@given(rows=st.lists(st.integers(1, 5), min_size=1, max_size=6), width=st.integers(1, 3))
def test_what_is_joined_comes_apart_as_it_was(rows: list[int], width: int) -> None:
    numbers = np.arange(sum(rows) * width, dtype=np.int32).reshape(-1, width)
    pieces = np.split(numbers, np.cumsum(rows)[:-1])
    merged = merge(CONFIG, of(*pieces))
    assert merged.rows == tuple(rows)
    np.testing.assert_array_equal(merged.inputs["X"].array, numbers)
    parts = split(CONFIG, {"Y": numbers * 2}, merged.rows)
    for part, piece in zip(parts, pieces, strict=True):
        np.testing.assert_array_equal(part["Y"].array, piece * 2)
        assert part["Y"].array.flags.c_contiguous


def test_one_request_alone_is_not_copied() -> None:
    (request,) = of([[1, 2]])
    assert merge(CONFIG, [request]).inputs["X"].array is request.inputs["X"].array


def test_bytes_are_joined_too() -> None:
    config = replace(CONFIG, inputs=(replace(SPEC, datatype="BYTES"),))
    requests = [
        InferRequest("m", {"X": msgspec.structs.replace(tensor("X", [[text]], "object"), datatype="BYTES")})
        for text in (b"a", b"bc")
    ]
    assert merge(config, requests).inputs["X"].array.tolist() == [[b"a"], [b"bc"]]


def test_ragged_inputs_are_laid_end_to_end_and_described() -> None:
    kinds = (
        "batch_element_count",
        "batch_accumulated_element_count",
        "batch_accumulated_element_count_with_zero",
        "batch_max_element_count_as_shape",
        "batch_item_shape",
        "batch_item_shape_flatten",
    )
    config = replace(
        CONFIG,
        inputs=(replace(SPEC, ragged=True),),
        batch_inputs=tuple(BatchTensor(kind, (kind,), "INT32", ("X",)) for kind in kinds),
    )
    merged = merge(config, of([[1, 2, 3]], [[4], [5]]))
    made = {name: value.array for name, value in merged.inputs.items()}
    assert made.pop("X").tolist() == [1, 2, 3, 4, 5]
    assert made.pop("batch_max_element_count_as_shape").shape == (3,)
    assert {name: array.tolist() for name, array in made.items()} == {
        "batch_element_count": [3, 2],
        "batch_accumulated_element_count": [3, 5],
        "batch_accumulated_element_count_with_zero": [0, 3, 5],
        "batch_item_shape": [[3], [1], [1]],
        "batch_item_shape_flatten": [3, 1, 1],
    }


def test_reshape_is_what_the_model_sees_and_the_client_does_not() -> None:
    config = replace(
        CONFIG,
        inputs=(TensorSpec("X", "INT32", (1,), reshape=()), TensorSpec("Z", "INT32", (-1, 2), reshape=(2, 1, -1))),
        outputs=(TensorSpec("Y", "INT32", (-1, 1), reshape=(-1,)),),
    )
    requests = [
        InferRequest("m", {"X": tensor("X", [[n]]), "Z": tensor("Z", [[[1, 2], [3, 4], [5, 6]]])}) for n in range(2)
    ]
    merged = merge(config, requests)
    assert merged.inputs["X"].array.shape == (2,)
    assert merged.inputs["Z"].array.shape == (2, 2, 1, 3)
    first, _ = split(config, {"Y": np.zeros((2, 7), np.int32)}, merged.rows)
    assert first["Y"].array.shape == (1, 7, 1)


def test_without_a_batch_dimension_the_request_is_the_batch() -> None:
    config = replace(CONFIG, max_batch_size=0)
    merged = merge(config, of([1, 2, 3]))
    assert merged.inputs["X"].array.tolist() == [1, 2, 3]
    assert split(config, {"Y": np.zeros(7, np.int32)}, merged.rows)[0]["Y"].array.shape == (7,)


def test_a_batch_whose_outputs_have_other_rows_is_refused() -> None:
    with pytest.raises(ServableError, match=r"output 'Y' of 'm' has shape \[3, 1\] for a batch of 2"):
        split(CONFIG, {"Y": np.zeros((3, 1), np.int32)}, (1, 1))


def test_a_fixed_batch_is_filled_with_its_first_row() -> None:
    assert pad_rows(np.array([[1], [2]]), 4).tolist() == [[1], [2], [1], [1]]
    assert pad_rows(np.array([[1], [2]]), 2).tolist() == [[1], [2]]

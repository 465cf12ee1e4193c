"""Classification results; the first is what a Triton 2.51 server answered."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.serve.servables.classification import classify
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.tensors import Tensor, TensorSpec
from tests.support.memory_backend import tensor

SPEC = TensorSpec("Y", "INT32", (-1,), labels=("zero", "", "two"))


def test_the_largest_values_of_each_row() -> None:
    result = classify(tensor("Y", [range(0, 32, 2)]), TensorSpec("Y", "INT32", (16,)), 2, has_batch=True)
    assert (result.datatype, result.array.tolist()) == ("BYTES", [[b"30:15", b"28:14"]])
    rows = classify(tensor("Y", [[1, 5, 3], [9, 5, 3]]), SPEC, 2, has_batch=True)
    assert rows.array.tolist() == [[b"5:1", b"3:2:two"], [b"9:0:zero", b"5:1"]]


def test_floats_are_written_with_six_places_and_a_tensor_without_a_batch_is_one_row() -> None:
    result = classify(tensor("Y", [[0.25], [1.5]], "float32"), SPEC, 9, has_batch=False)
    assert result.array.tolist() == [b"1.500000:1", b"0.250000:0:zero"]


@given(values=st.lists(st.integers(-5, 5), min_size=1, max_size=12), count=st.integers(1, 14))
def test_it_is_the_sorted_order(values: list[int], count: int) -> None:
    result = classify(tensor("Y", values), TensorSpec("Y", "INT32", (-1,)), count, has_batch=False)
    best = sorted(range(len(values)), key=lambda index: (-values[index], index))[:count]
    assert result.array.tolist() == [f"{values[index]}:{index}".encode() for index in best]


@pytest.mark.parametrize(("datatype", "kind"), [("BYTES", "TYPE_STRING"), ("FP16", "TYPE_FP16"), ("BF16", "TYPE_BF16")])
def test_what_has_no_order_is_refused(datatype: str, kind: str) -> None:
    with pytest.raises(ServableError, match=f"unsupported type '{kind}'"):
        classify(Tensor("Y", datatype, np.zeros(2, np.uint16)), SPEC, 1, has_batch=False)
    with pytest.raises(ServableError, match="at least 1"):
        classify(tensor("Y", [1]), SPEC, 0, has_batch=False)

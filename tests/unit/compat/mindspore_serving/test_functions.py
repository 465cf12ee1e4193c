"""Stage functions: what they get, what they may return, and who fails when one fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from millpond.compat.mindspore_serving.server.register.recording import StageFunction
from millpond.compat.mindspore_serving.server.worker.functions import to_array, wrap_function
from millpond.serve.servables.errors import ServableError


def text(content: bytes, kind: str) -> Any:
    array = np.empty((1,), dtype=object)
    array[0] = content
    return array.reshape(()) if kind == "string" else array


def run(call: Callable[..., Any], instances: list[tuple[Any, ...]], *, batch: bool = False, outputs: int = 1) -> Any:
    function = StageFunction("add.f", call, len(instances[0]), outputs, takes_batch=batch)
    results = wrap_function(function)(instances)
    return [result.message if isinstance(result, ServableError) else result for result in results]


def test_strings_come_as_str_and_bytes_as_uint8_arrays() -> None:
    seen: list[Any] = []

    def look(first: Any, second: Any) -> Any:
        seen.extend((first, second))
        return second.tobytes() + first.encode()

    (result,) = run(look, [(text(b"ab", "string"), text(b"\x01", "bytes"))])
    assert seen[0] == "ab"
    assert (seen[1].dtype, seen[1].tolist()) == (np.uint8, [1])
    assert (result.shape, result.item()) == ((1,), b"\x01ab")


@pytest.mark.parametrize(
    ("value", "dtype", "shape"),
    [
        (1, "int64", ()),
        (1.5, "float64", ()),
        (True, "bool", ()),
        (np.float16(1), "float16", ()),
        (np.ones((2, 1), ">i4"), "int32", (2, 1)),
        ("é", "object", ()),
        (b"x", "object", (1,)),
    ],
)
def test_results_of_these_types_can_be_sent(value: Any, dtype: str, shape: tuple[int, ...]) -> None:
    array = to_array(value)
    assert (array.dtype.newbyteorder("="), array.shape) == (np.dtype(dtype), shape)


def test_tensors_of_other_libraries_are_asked_for_numpy() -> None:
    class Tensor:
        def asnumpy(self) -> Any:
            return np.arange(3)

    assert to_array(Tensor()).tolist() == [0, 1, 2]


@pytest.mark.parametrize("value", [None, np.dtype("int8"), [1], {}, np.array(["a"]), np.array([1j])])
def test_results_of_other_types_fail(value: Any) -> None:
    with pytest.raises(RuntimeError, match="Get illegal result data with type"):
        to_array(value)


def test_an_instance_that_fails_fails_alone() -> None:
    results = run(lambda x: 1 // x, [(1,), (0,), (1,)])
    assert results[0] == results[2] == 1
    assert results[1].startswith("Call Function 'add.f' Failed, integer division")


def test_the_number_of_results_is_checked() -> None:
    assert run(lambda x: (x, x), [(1,)], outputs=2)[0] == (1, 1)
    assert "Call Function 'add.f' Failed, length of return output 3 not match" in run(lambda x: (x, x, x), [(1,)])[0]


@pytest.mark.parametrize("form", [list, tuple, iter])
def test_a_batch_function_gives_a_result_an_instance(form: Callable[..., Any]) -> None:
    assert run(lambda instances: form(one[0] + one[1] for one in instances), [(1, 2), (3, 4)], batch=True) == [3, 7]


def test_more_results_than_instances_are_left() -> None:
    assert run(lambda instances: iter(range(len(instances) + 1)), [(1,), (2,)], batch=True) == [0, 1]


def test_too_few_results_fail_the_rest() -> None:
    results = run(lambda instances: [1], [(1,), (2,), (3,)], batch=True)
    assert results[0] == 1
    assert results[1] == results[2]
    assert results[1].startswith("Call Function 'add.f' Failed")


def test_a_generator_goes_on_after_the_instance_at_which_it_failed() -> None:
    seen: list[int] = []

    def halves(instances: Any) -> Any:
        for (value,) in instances:
            seen.append(value)
            yield 10 // value

    results = run(halves, [(5,), (0,), (2,), (0,)], batch=True)
    assert [results[0], results[2]] == [2, 5]
    assert all("Call Function 'add.f' Failed" in results[index] for index in (1, 3))
    assert seen == [5, 0, 2, 0]


@pytest.mark.parametrize("call", [lambda instances: None, lambda instances: 1 // 0])
def test_a_batch_function_that_fails_at_once_fails_all(call: Callable[..., Any]) -> None:
    results = run(call, [(1,), (2,)], batch=True)
    assert len(results) == 2
    assert all("Call Function 'add.f' Failed" in result for result in results)

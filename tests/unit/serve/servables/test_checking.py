"""The texts are those a Triton 2.51 server gave to the same requests."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millpond.serve.servables.checking import RequestChecker
from millpond.serve.servables.config import ServableConfig
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import Alike, InferRequest
from millpond.serve.servables.tensors import NUMPY_TYPES, Tensor, TensorSpec

SIMPLE = ServableConfig(
    "simple",
    "python",
    (TensorSpec("INPUT0", "INT32", (16,)), TensorSpec("INPUT1", "INT32", (16,))),
    (TensorSpec("OUTPUT0", "INT32", (16,)), TensorSpec("OUTPUT1", "INT32", (16,))),
    max_batch_size=8,
)
BATCH_NOTE = (
    "NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be prepended to each "
    "input shape. If you want to specify the full shape including the batch dim in your input dims config, try setting "
    "max_batch_size to zero. See the model configuration docs for more info on max_batch_size."
)


def request(request_id: str = "", outputs: tuple[str, ...] | None = None, **shapes: tuple[object, ...]) -> InferRequest:
    inputs = {}
    for name, shape in shapes.items():
        is_typed = bool(shape) and isinstance(shape[0], str)
        datatype = str(shape[0]) if is_typed else "INT32"
        array = np.zeros(shape[is_typed:], NUMPY_TYPES[datatype])  # type: ignore[arg-type]  # words stand before sizes
        inputs[name] = Tensor(name, datatype, array)
    return InferRequest("simple", inputs, request_id=request_id, outputs=outputs)


def fault(config: ServableConfig, asked: InferRequest) -> str:
    with pytest.raises(ServableError) as caught:
        RequestChecker(config).check(asked)
    assert caught.value.code == "invalid_argument"
    return caught.value.message


@pytest.mark.parametrize(
    ("asked", "text"),
    [
        (
            request(INPUT0=(1, 16)),
            "[request id: <id_unknown>] expected 2 inputs but got 1 inputs for model 'simple'. Got input(s) ['INPUT0']"
            ", but missing required input(s) ['INPUT1']. Please provide all required input(s).",
        ),
        (
            request(INPUT0=(1, 16), INPUT1=(1, 16), INPUT2=(1, 16)),
            "[request id: <id_unknown>] expected 2 inputs but got 3 inputs for model 'simple'. Got input(s) "
            "['INPUT2','INPUT1','INPUT0'], but missing required input(s) ]. Please provide all required input(s).",
        ),
        (
            request("7"),
            "[request id: 7] expected 2 inputs but got 0 inputs for model 'simple'. Got input(s) [], but missing "
            "required input(s) ['INPUT0','INPUT1']. Please provide all required input(s).",
        ),
        (
            request(INPUT0=(1, 8), INPUT1=(1, 8)),
            "[request id: <id_unknown>] unexpected shape for input 'INPUT1' for model 'simple'. Expected [-1,16], got "
            "[1,8]. " + BATCH_NOTE,
        ),
        (
            request(INPUT0=(1, 16), X=(1, 16)),
            "unexpected inference input 'X' for model 'simple'",
        ),
        (
            request(outputs=("OUTPUT0", "Y"), INPUT0=(1, 16), INPUT1=(1, 16)),
            "unexpected inference output 'Y' for model 'simple'",
        ),
        (
            request("a", INPUT0=("FP32", 1, 16), INPUT1=(1, 16)),
            "[request id: a] inference input 'INPUT0' data-type is 'FP32', but model 'simple' expects 'INT32'",
        ),
        (
            request(INPUT0=(16,), INPUT1=(16,)),
            "[request id: <id_unknown>] inference request batch-size must be <= 8 for 'simple'",
        ),
        (
            request(INPUT0=(), INPUT1=()),
            "[request id: <id_unknown>] input 'INPUT1' has no shape but model requires batch dimension for 'simple'",
        ),
        (
            request(INPUT0=(1, 16), INPUT1=(2, 16)),
            "[request id: <id_unknown>] input 'INPUT0' batch size does not match other inputs for 'simple'",
        ),
    ],
)
def test_a_request_that_does_not_fit_gets_tritons_text(asked: InferRequest, text: str) -> None:
    assert fault(SIMPLE, asked) == text


def test_without_a_batch_dimension_the_text_has_no_note() -> None:
    config = replace(SIMPLE, max_batch_size=0)
    assert fault(config, request(INPUT0=(16,), INPUT1=(3, 16))) == (
        "[request id: <id_unknown>] unexpected shape for input 'INPUT1' for model 'simple'. Expected [16], got [3,16]. "
    )
    assert RequestChecker(config).check(request(INPUT0=(16,), INPUT1=(16,))) == 1


def test_with_optional_inputs_the_text_says_a_range() -> None:
    specs = (SIMPLE.inputs[0], replace(SIMPLE.inputs[1], optional=True))
    config = replace(SIMPLE, inputs=specs)
    assert RequestChecker(config).check(request(INPUT0=(3, 16))) == 3
    assert fault(config, request()).startswith(
        "[request id: <id_unknown>] expected number of inputs between 1 and 2 but got 0 inputs for model 'simple'."
    )
    assert "missing required input(s) ['INPUT0']" in fault(config, request(INPUT1=(1, 16)))


@settings(deadline=None)
@given(
    names=st.lists(st.sampled_from(["INPUT0", "INPUT1", "OTHER"]), unique=True, max_size=3),
    datatypes=st.tuples(*[st.sampled_from(["INT32", "FP32"])] * 3),
    shapes=st.tuples(*[st.sampled_from([(), (0, 16), (1, 16), (8, 16), (9, 16), (1, 8), (1, 16, 1), (16,)])] * 3),
)
def test_the_quick_look_and_the_slow_one_agree(
    names: list[str], datatypes: tuple[str, ...], shapes: tuple[tuple[int, ...], ...]
) -> None:
    asked = request(**{n: (d, *s) for n, d, s in zip(names, datatypes, shapes, strict=False)})
    tensors = asked.inputs
    is_right = (
        set(tensors) == {"INPUT0", "INPUT1"}
        and all(t.datatype == "INT32" and t.array.shape[1:] == (16,) for t in tensors.values())
        and len({t.array.shape[0] for t in tensors.values()}) == 1
        and next(iter(tensors.values())).array.shape[0] <= 8
    )
    if is_right:
        assert RequestChecker(SIMPLE).check(asked) == max(1, tensors["INPUT0"].array.shape[0])
    else:
        assert fault(SIMPLE, asked)


def test_what_is_remembered_of_alike_requests_holds_for_one_configuration_only() -> None:
    first, again = (request(INPUT0=(4, 16), INPUT1=(4, 16)) for _ in range(2))
    first.alike = again.alike = Alike()
    checker = RequestChecker(SIMPLE)
    assert [checker.check(one) for one in (first, again)] == [4, 4]
    assert "INPUT1" in fault(replace(SIMPLE, max_batch_size=8, inputs=SIMPLE.inputs[:1]), again)
    assert checker.check(again) == 4


def test_a_fault_is_not_remembered_as_right() -> None:
    wrong = request(INPUT0=(9, 16), INPUT1=(9, 16))
    wrong.alike = Alike()
    assert fault(SIMPLE, wrong) == fault(SIMPLE, wrong)
    assert RequestChecker(replace(SIMPLE, max_batch_size=9)).check(wrong) == 9
    assert "must be <= 8" in fault(SIMPLE, wrong)

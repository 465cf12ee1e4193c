"""Protobuf messages to values and back, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from millpond.serve.grpc.mindspore.messages import (
    ReplyWriter,
    read_request,
    read_tensor,
    write_failure,
    write_instance,
    write_reply,
)
from millpond.serve.mindspore.calls import Call, CallError, Failure, Result, Text, check_instances
from millpond.serve.mindspore.values import Value, from_tensor, make_text, to_tensor
from millpond.serve.proto import ms_service_pb2 as pb

DTYPES = [
    *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32"),
    *("int64", "uint64", "float16", "float32", "float64"),
]


@given(
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: arrays.arrays(dtype, arrays.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=3))
    )
)
@settings(max_examples=150, deadline=None)
def test_any_array_comes_back_from_the_wire_and_from_a_servable(array: Any) -> None:
    array = np.asarray(array)
    if 0 in array.shape[:-1]:
        array = array.reshape((0,))
    message = pb.Instance()
    write_instance(message, {"x": Value("tensor", array)})
    tensor = pb.Tensor.FromString(message.items["x"].SerializeToString())
    back = from_tensor(to_tensor("x", read_tensor(tensor)))
    assert back.array.dtype == array.dtype
    assert back.array.shape == array.shape
    np.testing.assert_array_equal(back.array, array)


@pytest.mark.parametrize("kind", ["string", "bytes"])
def test_strings_and_bytes_stay_what_they_are_through_a_servable(kind: Any) -> None:
    for shape in ((), (1,)):
        message = pb.Instance()
        write_instance(message, {"x": make_text(b"abc", kind, shape)})
        assert message.items["x"].dtype == (pb.MS_STRING if kind == "string" else pb.MS_BYTES)
        back = from_tensor(to_tensor("x", read_tensor(message.items["x"])))
        assert (back.kind, back.array.shape, back.array.item()) == (kind, (), b"abc")


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (pb.Tensor(dtype=pb.MS_INT32, data=b"123"), "Tensor check failed: input data size 3 invalid"),
        (pb.Tensor(dtype=pb.MS_INT8, shape=pb.TensorShape(dims=[-1])), r"input  shape \[-1\] invalid"),
        (pb.Tensor(dtype=pb.MS_INT8, shape=pb.TensorShape(dims=[0, 1])), r"input  shape \[0, 1\] invalid"),
        (pb.Tensor(dtype=pb.MS_INT8, shape=pb.TensorShape(dims=[2**62, 4])), "input data size 0 invalid"),
        (pb.Tensor(dtype=pb.MS_INT8, shape=pb.TensorShape(dims=[1] * 99)), "invalid"),
        (pb.Tensor(dtype=pb.MS_UNKNOWN), "input data type proto::MS_UNKNOWN invalid"),
        (pb.Tensor(dtype=pb.MS_INT8, shm_data=pb.ShmTensorData(memory_key="k")), "Shared memory is not supported"),
        (pb.Tensor(dtype=pb.MS_STRING), "shape batch size can only be 1"),
        (
            pb.Tensor(dtype=pb.MS_STRING, shape=pb.TensorShape(dims=[1, 1]), bytes_val=[b""]),
            r"can only be \(1,\) or empty, but given shape is \[1, 1\]",
        ),
    ],
)
def test_tensors_that_contradict_themselves_are_refused(tensor: pb.Tensor, text: str) -> None:
    request = pb.PredictRequest()
    request.instances.add().items["x"].CopyFrom(tensor)
    with pytest.raises(CallError, match=f"Instances input x check failed, detail: .*{text}"):
        read_request(request)


def test_two_strings_are_no_input() -> None:
    request = pb.PredictRequest()
    request.instances.add().items["x"].CopyFrom(
        pb.Tensor(dtype=pb.MS_STRING, shape=pb.TensorShape(dims=[2]), bytes_val=[b"a", b"b"])
    )
    with pytest.raises(CallError, match="shape batch size can only be 1"):
        check_instances(read_request(request), ("x",))


def test_missing_inputs_and_instances_are_named() -> None:
    with pytest.raises(CallError, match="Cannot find input y in instance input , servable s, method m"):
        check_instances(Call("s", "m", 0, [{}]), ("y",))
    with pytest.raises(CallError, match="Instances count of request cannot be 0, servable: s, method: m"):
        check_instances(Call("s", "m", 0, []), ("y",))


def test_failures_of_some_instances_stand_beside_the_results() -> None:
    good = {"y": Value("tensor", np.array([1], np.int32))}
    reply = write_reply(pb.PredictRequest(), [good, Failure(2, "bad"), good])
    assert [(error.error_code, error.error_msg) for error in reply.error_msg] == [(0, b""), (2, b"bad"), (0, b"")]
    assert [len(instance.items) for instance in reply.instances] == [1, 0, 1]


def test_failures_of_all_instances_alike_are_one() -> None:
    request = pb.PredictRequest(servable_spec=pb.ServableSpec(name="s", method_name="m", version_number=2))
    for reply in (write_reply(request, [Failure(2, "bad")] * 3), write_failure(request, CallError(2, "bad"))):
        assert [(error.error_code, error.error_msg) for error in reply.error_msg] == [(2, b"bad")]
        assert not reply.instances
        assert reply.servable_spec == request.servable_spec


@pytest.mark.parametrize("text", ["", "a", "é\u4e16" * 50, "x" * 20_000])
def test_replies_of_a_stream_are_the_bytes_of_whole_messages(text: str) -> None:
    request = pb.PredictRequest()
    request.servable_spec.name, request.servable_spec.version_number = "m", 3
    writer = ReplyWriter(request)
    for said in ("first", text, "", text):
        whole = write_reply(request, [{"text_output": make_text(said.encode(), "string")}])
        assert writer.write(Text("text_output", said.encode())) == whole.SerializeToString()
    others: list[Result] = [
        Failure(1, "broken"),
        {"other": make_text(b"x", "string")},
        {"text_output": make_text(b"x", "bytes", (1,))},
        {"text_output": make_text(b"x", "string"), "b": Value("tensor", np.zeros(3))},
    ]
    for result in others:
        assert writer.write(result) == write_reply(request, [result]).SerializeToString()

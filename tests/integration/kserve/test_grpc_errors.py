"""gRPC: broken messages, wrong tensors, streams that are left, and the health service."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator

import grpc
import numpy as np
import pytest

from millpond.serve.proto import health_pb2
from millpond.serve.proto import inference_pb2 as pb
from tests.support.triton_server import TritonServer

SERVICE = "/inference.GRPCInferenceService/"
RAW = np.arange(16, dtype=np.int32).tobytes()


@pytest.fixture
def channel(golden_server: TritonServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(golden_server.grpc) as channel:
        yield channel


def good(model: str = "simple") -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model, id="a")
    for name in ("INPUT0", "INPUT1"):
        request.inputs.add(name=name, datatype="INT32", shape=[1, 16])
        request.raw_input_contents.append(RAW)
    return request


def infer(channel: grpc.Channel, request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    call = channel.unary_unary(
        SERVICE + "ModelInfer", pb.ModelInferRequest.SerializeToString, pb.ModelInferResponse.FromString
    )
    response = call(request, timeout=30)
    assert isinstance(response, pb.ModelInferResponse)
    return response


def wrong(name: str) -> pb.ModelInferRequest:
    request = good()
    if name == "short data":
        request.raw_input_contents[0] = RAW[:-1]
    elif name == "negative dimension":
        request.inputs[0].shape[1] = -16
    elif name == "huge dimensions":
        request.inputs[0].shape[:] = [1 << 62, 1 << 62]
    elif name == "too many raw":
        request.raw_input_contents.append(RAW)
    elif name == "too few raw":
        del request.raw_input_contents[1]
    elif name == "datatype":
        request.inputs[0].datatype = "INT33"
    elif name == "version":
        request.model_version = "x"
    elif name == "empty parameter":
        request.parameters["p"].SetInParent()
    elif name == "reserved parameter":
        request.parameters["triton_p"].int64_param = 1
    elif name == "typed contents of another type":
        del request.raw_input_contents[:]
        request.inputs[0].contents.fp32_contents.extend([1.0] * 16)
        request.inputs[1].contents.int_contents.extend([1] * 16)
    elif name == "unknown region":
        request.inputs[0].parameters["shared_memory_region"].string_param = "nowhere"
        request.inputs[0].parameters["shared_memory_byte_size"].int64_param = 64
    elif name == "negative region":
        request.inputs[0].parameters["shared_memory_region"].string_param = "nowhere"
        request.inputs[0].parameters["shared_memory_byte_size"].int64_param = -64
    return request


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("short data", "input byte size mismatch for input 'INPUT0' for model 'simple'. Expected 64, got 63"),
        ("negative dimension", "invalid shape"),
        ("huge dimensions", "invalid shape"),
        ("too many raw", "raw_input_contents"),
        ("too few raw", "unable to find data for input tensor 'INPUT1'"),
        ("datatype", "invalid datatype"),
        ("version", "version"),
        ("empty parameter", "parameter 'p' has no value"),
        ("reserved parameter", "reserved for Triton usage"),
        ("typed contents of another type", "unexpected explicit tensor data"),
        ("unknown region", "Unable to find shared memory region: 'nowhere'"),
        ("negative region", "Unable to find shared memory region: 'nowhere'"),
    ],
)
def test_a_wrong_request_has_its_status_and_reason(channel: grpc.Channel, name: str, words: str) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        infer(channel, wrong(name))
    expected = grpc.StatusCode.NOT_FOUND if "region" in name else grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.code() is expected  # type: ignore[attr-defined]  # grpc.RpcError says less than it has
    assert words in caught.value.details()  # type: ignore[attr-defined]  # grpc.RpcError says less than it has


def test_mutated_messages_never_crash_the_server(channel: grpc.Channel) -> None:
    chance = random.Random(3)
    call = channel.unary_unary(SERVICE + "ModelInfer")
    data = good().SerializeToString()
    codes = set()
    for _ in range(400):
        mutated = bytearray(data)
        for _ in range(chance.randrange(1, 6)):
            mutated[chance.randrange(len(mutated))] = chance.randrange(256)
        try:
            call(bytes(mutated[: chance.randrange(1, len(mutated) + 1)]), timeout=30)
        except grpc.RpcError as error:
            codes.add(error.code())  # type: ignore[attr-defined]  # grpc.RpcError says less than it has
    assert codes <= {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.INTERNAL,  # what is no protobuf at all
    }
    assert infer(channel, good()).raw_output_contents[0] == (np.arange(16, dtype=np.int32) * 2).tobytes()


@pytest.mark.parametrize("dimension", ["many", "beyond ASCII"])
def test_a_reason_that_is_too_long_for_a_status_is_cut(channel: grpc.Channel, dimension: str) -> None:
    request = good()
    if dimension == "many":
        request.inputs[0].shape[:] = [1] * 5000
    else:
        request.inputs[0].name = "\u00fc" * 5000
    with pytest.raises(grpc.RpcError) as caught:
        infer(channel, request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    details = caught.value.details()  # type: ignore[attr-defined]  # grpc.RpcError says less than it has
    assert details.count(" ... ") == 1
    assert details.endswith(("1, 1]", "model 'simple'"))
    assert "[1, 1, 1" in details or "\u00fc" * 100 in details


def test_a_stream_that_is_left_hurts_nobody(channel: grpc.Channel) -> None:
    stream = channel.stream_stream(
        SERVICE + "ModelStreamInfer",
        pb.ModelInferRequest.SerializeToString,
        pb.ModelStreamInferResponse.FromString,
    )
    for _ in range(5):
        slow = pb.ModelInferRequest(model_name="repeat_int32", id="s")
        tensors = (("IN", "INT32", [1] * 9), ("DELAY", "UINT32", [20] * 9), ("WAIT", "UINT32", [0]))
        for name, datatype, values in tensors:
            slow.inputs.add(name=name, datatype=datatype, shape=[len(values)])
            slow.raw_input_contents.append(np.array(values, np.int32).tobytes())
        call = stream(iter([slow]), timeout=30)
        assert next(call).infer_response.id == "s"
        call.cancel()
    assert infer(channel, good()).id == "a"


def test_a_stream_whose_client_reads_nothing_can_be_left(golden_server: TritonServer, channel: grpc.Channel) -> None:
    stream = channel.stream_stream(
        SERVICE + "ModelStreamInfer",
        pb.ModelInferRequest.SerializeToString,
        pb.ModelStreamInferResponse.FromString,
    )
    call = stream(iter([good() for _ in range(500)]), timeout=30)
    next(call)
    call.cancel()

    async def num_open() -> int:
        return golden_server.servables.find("simple").num_open

    deadline = time.monotonic() + 20
    while golden_server.run(num_open) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert golden_server.run(num_open) == 0


def test_a_stream_with_a_broken_message_ends_with_a_status(channel: grpc.Channel) -> None:
    stream = channel.stream_stream(SERVICE + "ModelStreamInfer")
    with pytest.raises(grpc.RpcError) as caught:
        list(stream(iter([b"\xff\xff\xff"]), timeout=30))
    assert caught.value.code() is grpc.StatusCode.INTERNAL  # type: ignore[attr-defined]


def test_the_parts_of_a_stream_come_back_with_their_ids(channel: grpc.Channel) -> None:
    stream = channel.stream_stream(
        SERVICE + "ModelStreamInfer",
        pb.ModelInferRequest.SerializeToString,
        pb.ModelStreamInferResponse.FromString,
    )
    requests = []
    for number in range(50):
        request = good("simple" if number % 5 else "nope")
        request.id = str(number)
        requests.append(request)
    answers = {answer.infer_response.id: answer for answer in stream(iter(requests), timeout=30)}
    assert len(answers) == 50
    assert {int(key) for key, answer in answers.items() if answer.error_message} == set(range(0, 50, 5))


@pytest.mark.parametrize(("name", "status"), [("", 1), (SERVICE.strip("/"), 1)])
def test_the_health_service_answers(channel: grpc.Channel, name: str, status: int) -> None:
    request = health_pb2.HealthCheckRequest(service=name).SerializeToString()
    answer = channel.unary_unary("/grpc.health.v1.Health/Check")(request, timeout=30)
    assert health_pb2.HealthCheckResponse.FromString(answer).status == status
    watching = channel.unary_stream("/grpc.health.v1.Health/Watch")(request, timeout=30)
    assert health_pb2.HealthCheckResponse.FromString(next(watching)).status == status
    watching.cancel()


def test_the_health_of_an_unknown_service_is_not_found(channel: grpc.Channel) -> None:
    request = health_pb2.HealthCheckRequest(service="x").SerializeToString()
    with pytest.raises(grpc.RpcError) as caught:
        channel.unary_unary("/grpc.health.v1.Health/Check")(request, timeout=30)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND  # type: ignore[attr-defined]

"""Infer and generate over HTTP: what is wrong with a request, in the compatible form and in the strict one."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import numpy as np
import pytest

from millpond.serve.servables.config import ServableConfig
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferResponse
from millpond.serve.servables.tensors import Tensor, TensorSpec
from tests.support.memory_backend import echo_config
from tests.unit.serve.kserve.conftest import Serve, echo_body

X = {"name": "X", "shape": [1], "datatype": "INT32"}


@pytest.mark.parametrize(
    ("body", "words", "compatible", "strict"),
    [
        (b"{", "failed to parse the request JSON buffer", 500, 400),
        (b" ", "The document is empty", 500, 400),
        ({"inputs": 5}, "Unable to parse 'inputs': attempt to access JSON non-array as array", 500, 400),
        ({"inputs": [{**X, "data": ["a"]}]}, "JSON non-signed-integer as signed-integer", 500, 400),
        ({"inputs": [{**X, "data": [1, 2]}]}, "Shape does not match true shape of 'data' field", 500, 400),
        ({"inputs": [X]}, "But no field is set", 400, 400),
        ({"inputs": [{**X, "datatype": "INT31", "data": [1]}]}, "invalid datatype for input X", 400, 400),
        ({"inputs": [{**X, "shape": [-1], "data": [1]}]}, "Unable to parse 'shape'", 500, 400),
        ({"inputs": [{**X, "shape": [1 << 62], "data": [1]}]}, "invalid shape", 400, 400),
        ({"inputs": [{**X, "shape": [0, 1 << 39, 1 << 39], "data": []}]}, "invalid shape", 400, 400),
        ({"inputs": [{**X, "parameters": {"binary_data_size": 4}}]}, "expecting 4 additional bytes", 400, 400),
        ({"inputs": [{**X, "data": [1]}] * 2}, "input 'X' already exists in request", 400, 400),
        ({"inputs": []}, "expected 1 inputs but got 0 inputs", 400, 400),
        (echo_body(1, parameters=5), "failed to get request params.: attempt to get members for non-object", 500, 400),
        ({"inputs": [{**X, "name": "Y", "data": [1]}]}, "unexpected inference input 'Y'", 400, 400),
        (echo_body(1, outputs=[{"name": "Z"}]), "unexpected inference output 'Z'", 400, 400),
        (echo_body(1, parameters={"a": {}}), "parameter 'a' has invalid type", 400, 400),
        (echo_body(1, parameters={"triton_x": 1}), "reserved for Triton usage", 400, 400),
        (echo_body(1, parameters={"priority": "x"}), "Unable to parse 'priority'", 500, 400),
    ],
)
async def test_a_wrong_request_is_refused_with_its_reason(
    serve: Serve, body: Any, words: str, compatible: int, strict: int
) -> None:
    for is_strict, status in ((False, compatible), (True, strict)):
        reply = await (await serve(is_strict=is_strict)).infer(body)
        assert words in reply.json()["error"]  # type: ignore[index]  # fails here if it is not so
        assert reply.status == status


async def test_an_integer_too_large_is_cut_off_or_refused(serve: Serve) -> None:
    reply = await (await serve()).infer(echo_body((1 << 40) + 5))
    assert reply.json()["outputs"][0]["data"] == [5]  # type: ignore[index]  # fails here if it is not so
    assert (await (await serve(is_strict=True)).infer(echo_body(1 << 40))).status == 400


async def test_what_is_no_number_survives_json(serve: Serve) -> None:
    served = await serve(configs=(echo_config(datatype="FP32"),))
    reply = await served.infer(
        b'{"inputs":[{"name":"X","shape":[4],"datatype":"FP32","data":[NaN,Infinity,-Infinity,1.5]}]}'
    )
    data = json.loads(reply.body)["outputs"][0]["data"]
    np.testing.assert_array_equal(data, [np.nan, np.inf, -np.inf, 1.5])


async def test_half_precision_needs_the_binary_form(serve: Serve) -> None:
    served = await serve(configs=(echo_config(datatype="FP16"),))
    item = {"name": "X", "shape": [2], "datatype": "FP16"}
    reply = await served.infer({"inputs": [{**item, "data": [1, 2]}]})
    assert (reply.status, "not supported" in reply.json()["error"]) == (400, True)  # type: ignore[index]
    raw = np.array([1, 2], np.float16).tobytes()
    head = json.dumps(
        {"inputs": [{**item, "parameters": {"binary_data_size": 4}}], "parameters": {"binary_data_output": True}}
    ).encode()
    reply = await served.infer(head + raw, Inference_Header_Content_Length=str(len(head)))
    assert reply.body[int(reply.headers["inference-header-content-length"]) :] == raw


async def test_a_body_without_json_is_the_one_input(serve: Serve) -> None:
    served = await serve(configs=(echo_config(datatype="BYTES", dims=(1,)), echo_config("numbers")))
    reply = await served.infer(b"hello", Inference_Header_Content_Length="0")
    assert reply.body.endswith(b"\x05\0\0\0hello")
    raw = np.arange(5, dtype=np.int32).tobytes()
    reply = await served.infer(raw, "numbers", Inference_Header_Content_Length="0")
    assert reply.body.endswith(raw)


@pytest.mark.parametrize("length", ["x", "-1", "9" * 30, "5000"])
async def test_a_wrong_header_length_is_refused(serve: Serve, length: str) -> None:
    assert (await (await serve()).infer(echo_body(1), Inference_Header_Content_Length=length)).status == 400


async def test_a_header_length_beyond_the_body_is_refused_in_the_words_of_triton(serve: Serve) -> None:
    size = len(json.dumps(echo_body(1)))
    reply = await (await serve()).infer(echo_body(1), Inference_Header_Content_Length=str(size + 1))
    text = f"inference header size should be in range (0, {size}), got: {size + 1}"
    assert (reply.status, reply.json()) == (400, {"error": text})


async def test_a_model_on_its_way_out_has_a_reason_only_when_it_is_gone(serve: Serve) -> None:
    may_end = asyncio.Event()

    async def wait(instance, requests, replies) -> None:  # type: ignore[no-untyped-def]  # a stand-in
        await may_end.wait()
        replies.send(0, InferResponse("echo", 1, {"X": requests[0].inputs["X"]}))

    served = await serve(wait)
    asked = asyncio.create_task(served.infer(echo_body(1)))
    async with asyncio.timeout(10):
        while not served.server.servables.find("echo", None).num_open:
            await asyncio.sleep(0.01)
        await served.server.servables.remove("echo")
        index = await served.ask("POST", "/v2/repository/index", {})
        assert index.json() == [{"name": "echo", "version": "1", "state": "UNLOADING"}]
        may_end.set()
        assert (await asked).status == 200
        while True:
            (entry,) = (await served.ask("POST", "/v2/repository/index", {})).json()  # type: ignore[misc]  # a list of one
            if entry["state"] == "UNAVAILABLE":
                break
            await asyncio.sleep(0.01)
    assert entry["reason"] == "unloaded"


@pytest.mark.parametrize(
    ("code", "compatible", "strict"),
    [
        ("unknown", 400, 500),
        ("internal", 500, 500),
        ("not_found", 404, 404),
        ("invalid_argument", 400, 400),
        ("unavailable", 503, 503),
        ("unsupported", 501, 400),
        ("already_exists", 400, 409),
    ],
)
async def test_errors_of_a_model_have_their_status(serve: Serve, code: Any, compatible: int, strict: int) -> None:
    async def fail(instance, requests, replies) -> None:  # type: ignore[no-untyped-def]  # a stand-in
        error = ServableError(code, "it is so")
        replies.send(0, InferResponse("echo", 1, error=error))

    for is_strict, status in ((False, compatible), (True, strict)):
        reply = await (await serve(fail, is_strict=is_strict)).infer(echo_body(1))
        assert (reply.status, reply.json()) == (status, {"error": "it is so"})


STREAM = ServableConfig(
    "echo", "memory", (TensorSpec("X", "BYTES", (1,)),), (TensorSpec("Y", "FP32", (1,)),), decoupled=True
)


async def count(instance, requests, replies) -> None:  # type: ignore[no-untyped-def]  # a stand-in
    """Answers X times, then with an error when X is negative."""
    value = int(requests[0].inputs["X"].array[0])
    for number in range(abs(value)):
        tensor = Tensor("Y", "FP32", np.array([number / 2], np.float32))
        replies.send(0, InferResponse("echo", 1, {"Y": tensor}, final=False))
        await asyncio.sleep(0)
    error = ServableError("internal", "no more") if value < 0 else None
    replies.send(0, InferResponse("echo", 1, error=error))


async def test_a_stream_has_an_event_a_response_and_errors_among_them(serve: Serve) -> None:
    served = await serve(count, configs=(STREAM,))
    reply = await served.ask("POST", "/v2/models/echo/generate_stream", {"X": "-2"})
    events = [json.loads(event.removeprefix(b"data: ")) for event in reply.body.split(b"\n\n") if event]
    assert reply.status == 200
    assert [event.get("Y", event.get("error")) for event in events] == [0.0, 0.5, "no more"]


@pytest.mark.parametrize(("is_strict", "status"), [(False, 200), (True, 422)])
async def test_generate_wants_exactly_one_response(serve: Serve, is_strict: bool, status: int) -> None:
    served = await serve(count, configs=(STREAM,), is_strict=is_strict)
    reply = await served.ask("POST", "/v2/models/echo/generate", {"X": "1"})
    assert reply.json() == {"model_name": "echo", "model_version": "1", "Y": 0.0}
    reply = await served.ask("POST", "/v2/models/echo/generate", {"X": "3"})
    assert reply.status == status
    assert "exactly 1 response" in reply.json()["error"]  # type: ignore[index]  # fails here if it is not so


async def test_a_decoupled_model_cannot_be_inferred(serve: Serve) -> None:
    reply = await (await serve(count, configs=(STREAM,))).infer(echo_body(1))
    assert (reply.status, "decoupled" in reply.json()["error"]) == (501, True)  # type: ignore[index]


@pytest.mark.parametrize(
    "key", ["/../../etc/passwd", "/etc/passwd", "..", "", "/", "/millpond_x", "/psm_1", "a\0b", "/nothing_of_this_name"]
)
async def test_no_file_but_shared_memory_of_clients_can_be_registered(serve: Serve, key: str) -> None:
    served = await serve()
    path = "/v2/systemsharedmemory/region/r/register"
    reply = await served.ask("POST", path, {"key": key, "offset": 0, "byte_size": 1})
    assert reply.status == 500
    assert "Unable to open shared memory region" in reply.json()["error"]  # type: ignore[index]


async def test_loading_without_a_repository_is_refused(serve: Serve) -> None:
    served = await serve()
    assert (await served.ask("POST", "/v2/repository/models/x/load", {})).status == 503
    index = (await served.ask("POST", "/v2/repository/index", {})).json()
    assert index == [{"name": "echo", "version": "1", "state": "READY"}]

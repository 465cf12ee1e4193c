"""What goes wrong inside a stream of requests is told for the request it happened to, and the stream goes on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from millpond.serve.grpc.kserve.stream import read_stream
from millpond.serve.kserve.server import KServe
from millpond.serve.kserve.settings import TritonSettings
from millpond.serve.proto import inference_pb2 as pb
from millpond.serve.servables.backend import ModelFolder, Replies
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.registry import Servables
from tests.support.memory_backend import MemoryBackend, MemoryInstance, echo_config


async def answer(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
    (request,) = requests
    parameters = {"told": "\ud800" if request.request_id == "odd" else "even"}  # half a character is no text in UTF-8
    replies.send(0, InferResponse("echo", 1, parameters=dict(parameters)))


async def asked(*names: str) -> AsyncIterator[pb.ModelInferRequest]:
    for name in names:
        request = pb.ModelInferRequest(model_name="echo", id=name)
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        request.inputs.add(name="X", datatype="INT32", shape=[1])
        request.raw_input_contents.append(bytes(4))
        yield request


async def test_a_response_that_cannot_be_written_is_an_error_of_its_request(caplog: pytest.LogCaptureFixture) -> None:
    servables = Servables({"memory": MemoryBackend(answer)})
    await servables.add(replace(echo_config(), decoupled=True), ModelFolder(None, 1))
    server = KServe(servables, None, TritonSettings())
    try:
        messages = [
            pb.ModelStreamInferResponse.FromString(message)
            async for message in read_stream(server, asked("first", "odd", "last"))
        ]
    finally:
        server.close()
        await servables.close()
    told = {message.infer_response.id: message.error_message for message in messages}
    assert told == {"first": "", "odd": "Internal error; the server's log says more.", "last": ""}
    (record,) = caplog.records
    assert record.getMessage() == "a request of a stream to echo failed"

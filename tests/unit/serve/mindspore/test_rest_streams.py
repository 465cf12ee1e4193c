"""A stream of MindSpore's REST port that breaks after it began tells so, and ends as every other."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from millpond.serve.http.mindspore.port import MindSporeRestPort
from millpond.serve.mindspore.dispatch import Dispatcher
from millpond.serve.servables.backend import ModelFolder, Replies
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.registry import Servables
from tests.support.language_ports import post
from tests.support.memory_backend import MemoryBackend, MemoryInstance, echo_config, tensor


async def answer(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
    replies.send(0, InferResponse("echo", 1, {"y": tensor("y", [1])}, final=False))
    replies.send(0, InferResponse("echo", 1, {"\ud800": tensor("\ud800", [2])}))  # half a character is no name in JSON


async def test_a_result_that_cannot_be_written_is_told_in_the_stream(caplog: pytest.LogCaptureFixture) -> None:
    servables = Servables({"memory": MemoryBackend(answer)})
    await servables.add(replace(echo_config(), decoupled=True), ModelFolder(None, 1))
    port = MindSporeRestPort(Dispatcher(servables), "127.0.0.1", 0)
    await port.start()
    try:
        with await post(port.address, "/model/echo:generated_stream", {"instances": [{"X": [1]}]}) as client:
            data = b""
            while not data.endswith(b"0\r\n\r\n"):
                data += await asyncio.wait_for(asyncio.get_running_loop().sock_recv(client, 1 << 16), 20)
    finally:
        await port.stop()
        await servables.close()
    events = [line.removeprefix(b"data: ") for line in data.split(b"\n") if line.startswith(b"data: ")]
    assert [json.loads(event) for event in events[:-1]] == [
        {"instances": [{"y": [1]}]},
        {"error_msg": "Serving Error: exception occurred"},
    ]
    assert events[-1] == b"[DONE]"
    (record,) = caplog.records
    assert record.getMessage() == "a MindSpore REST stream failed"

"""Python models that call other models through the gateway."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tests.integration.backends.conftest import Bench
from tests.integration.backends.test_python import NUMBERS, TEXTS, texts
from tests.integration.backends.test_python_streams import DECOUPLED

DOUBLE = """
import triton_python_backend_utils as pb
class TritonPythonModel:
    def execute(self, requests):
        if requests[0].inputs()[0].as_numpy()[0] < 0:
            raise ValueError("negative")
        return [pb.InferenceResponse([pb.Tensor("OUT", r.inputs()[0].as_numpy() * 2)]) for r in requests]
"""
COUNT = """
import numpy as np
import triton_python_backend_utils as pb
class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            for value in range(int(request.inputs()[0].as_numpy()[0])):
                sender.send(pb.InferenceResponse([pb.Tensor("OUT", np.array([value], np.int32))]))
            sender.send(flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
CALLER = """
import asyncio, json, numpy as np
import triton_python_backend_utils as pb
def ask(model, value, size=1):
    tensor = pb.Tensor("IN", np.full(size, value, np.int32))
    return pb.InferenceRequest(model_name=model, inputs=[tensor], requested_output_names=["OUT"])
def number(response):
    if response.has_error():
        return response.error().message()
    return [int(v) for v in pb.get_output_tensor_by_name(response, "OUT").as_numpy()[:3]]
class TritonPythonModel:
    async def execute(self, requests):
        seen = {
            "once": number(ask("double", 4).exec()),
            "large": number(ask("double", 5, 1 << 20).exec()),
            "at once": [number(r) for r in
                        await asyncio.gather(*(ask("double", n).async_exec() for n in range(8)))],
            "unknown": number(ask("nobody", 1).exec()),
            "failed": number(ask("double", -1).exec()),
            "stream": [number(r) for r in ask("count", 3).exec(decoupled=True) if r.output_tensors()],
            "not a stream": number(ask("count", 3).exec()),
            "ready": [pb.is_model_ready("double"), pb.is_model_ready("nobody")],
        }
        try:
            pb.load_model("other")
        except pb.TritonModelException as error:
            seen["load"] = str(error)
        out = pb.Tensor("OUT", np.array([json.dumps(seen).encode()], dtype=np.object_))
        return [pb.InferenceResponse([out]) for _ in requests]
"""


async def test_a_model_calls_others_at_once_and_one_after_another(bench: Bench) -> None:
    await bench.add(
        "double",
        NUMBERS % ("double", 0),
        DOUBLE,
    )
    await bench.add(
        "count",
        NUMBERS % ("count", 0) + DECOUPLED,
        COUNT,
    )
    await bench.add(
        "caller",
        TEXTS % "caller",
        CALLER,
    )
    answer = await bench.infer("caller", texts("go"))
    seen = json.loads(answer.outputs["OUT"].array[0])
    assert seen.pop("failed").startswith("Failed to process the request(s) for model 'double_0_0', message: ValueError")
    assert seen.pop("not a stream").startswith("Model count is using the decoupled.")
    assert seen == {
        "once": [8],
        "large": [10, 10, 10],
        "at once": [[2 * n] for n in range(8)],
        "unknown": "Request for unknown model: 'nobody' is not found",
        "stream": [[0], [1], [2]],
        "ready": [True, False],
        "load": "There is no model repository to load from.",
    }


ASKER = """
import json, numpy as np
import triton_python_backend_utils as pb
class TritonPythonModel:
    def execute(self, requests):
        tensor = pb.Tensor("IN", np.zeros(1, np.int32))
        asked = pb.InferenceRequest(model_name="any", inputs=[tensor], requested_output_names=["OUT"]).exec()
        seen = [asked.error().message()]
        try:
            pb.is_model_ready("any")
        except pb.TritonModelException as error:
            seen.append(str(error))
        out = pb.Tensor("OUT", np.array([json.dumps(seen).encode()], dtype=np.object_))
        return [pb.InferenceResponse([out]) for _ in requests]
"""


async def test_a_call_that_breaks_in_the_gateway_has_an_answer(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: Any) -> Any:
        raise KeyError("broken")

    monkeypatch.setattr(bench.calls, "stream", broken, raising=False)
    monkeypatch.setattr(bench.calls, "is_ready", broken, raising=False)
    await bench.add("asker", TEXTS % "asker", ASKER)
    async with asyncio.timeout(30):
        answer = await bench.infer("asker", texts("go"))
    message = "The call could not be answered; the server's log says why."
    assert json.loads(answer.outputs["OUT"].array[0]) == [message, message]
    assert caplog.text.count("KeyError: 'broken'") == 2

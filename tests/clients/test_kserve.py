"""KServe's own client, unchanged: REST and gRPC of the second version of its protocol.

Its calls about health read a JSON document, which is the protocol's text; Triton answers them with nothing, and so does
the compatible form. The strict form has the document.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tests.support.triton_server import TritonServer

pytestmark = pytest.mark.clients

SCRIPT = """
import asyncio, json, sys
import numpy as np
from kserve import InferenceGRPCClient, InferenceRESTClient, InferInput, InferRequest, RESTConfig
from kserve.protocol.infer_type import RequestedOutput

def request(is_binary, dtype=np.int32, inputs=2, name="simple"):
    tensors = []
    for number in range(inputs):
        tensor = InferInput(f"INPUT{number}", [1, 16], "INT32")
        tensor.set_data_from_numpy(np.full((1, 16), number + 3, dtype), binary_data=is_binary)
        tensors.append(tensor)
    outputs = [RequestedOutput("OUTPUT0", {"binary_data": is_binary}), RequestedOutput("OUTPUT1")]
    return InferRequest(name, tensors, request_id="k", request_outputs=outputs)

async def ask_rest(base, asks_health):
    got = {}
    async with InferenceRESTClient(RESTConfig(protocol="v2", verify=False)) as client:
        for kind in ("json", "binary"):
            answer = await client.infer(base, request(kind == "binary"), model_name="simple")
            got[kind] = [answer.id, *(output.as_numpy().tolist()[0][:2] for output in answer.outputs)]
        text = InferInput("INPUT0", [1, 16], "BYTES")
        text.set_data_from_numpy(np.array([[str(n) for n in range(16)]], dtype=object), binary_data=True)
        other = InferInput("INPUT1", [1, 16], "BYTES")
        other.set_data_from_numpy(np.array([["1"] * 16], dtype=object), binary_data=True)
        answer = await client.infer(base, InferRequest("simple_string", [text, other]), model_name="simple_string")
        got["texts"] = [item if isinstance(item, str) else item.decode() for item in
                        answer.outputs[0].as_numpy().reshape(-1)[:3].tolist()]
        for name, wrong in (("missing", request(False, inputs=1)), ("unknown", request(False, name="nope"))):
            try:
                await client.infer(base, wrong, model_name=wrong.model_name)
            except Exception as error:
                got[name] = [type(error).__name__, error.response.status_code, str(error)]
        if asks_health:
            got["health"] = [await client.is_server_live(base), await client.is_server_ready(base),
                             await client.is_model_ready(base, "simple"), await client.is_model_ready(base, "nope")]
    return got

async def ask_grpc(address):
    got = {}
    async with InferenceGRPCClient(address) as client:
        got["health"] = [await client.is_server_live(), await client.is_server_ready(),
                         await client.is_model_ready("simple"), await client.is_model_ready("nope")]
        tensors = []
        for number in range(2):
            tensor = InferInput(f"INPUT{number}", [1, 16], "INT32")
            tensor.set_data_from_numpy(np.full((1, 16), number + 3, np.int32), binary_data=True)
            tensors.append(tensor)
        answer = await client.infer(InferRequest("simple", tensors, request_id="k"))
        got["binary"] = [answer.id, *(output.as_numpy().tolist()[0][:2] for output in answer.outputs)]
        for number, tensor in enumerate(tensors):
            tensor.set_data_from_numpy(np.full((1, 16), number + 3, np.int32), binary_data=False)
        answer = await client.infer(InferRequest("simple", tensors, request_id="k"))
        got["typed"] = [answer.id, *(output.as_numpy().tolist()[0][:2] for output in answer.outputs)]
        try:
            await client.infer(InferRequest("simple", tensors[:1]))
        except Exception as error:
            got["missing"] = [error.code().name, error.details()]
    return got

async def main():
    compatible, strict, grpc = sys.argv[1:]
    print(json.dumps({"compatible": await ask_rest(f"http://{compatible}", False),
                      "strict": await ask_rest(f"http://{strict}", True), "grpc": await ask_grpc(grpc)}))

asyncio.run(main())
"""
ANSWER = ["k", [7, 7], [-1, -1]]


@pytest.fixture(scope="module")
def told(triton: TritonServer, strict_triton: TritonServer, run_client: Callable[..., Any]) -> Any:
    """What the client got in each form; it is started once, because its libraries take long to import."""
    return run_client("kserve", SCRIPT, triton.http, strict_triton.http, triton.grpc)


@pytest.mark.parametrize("form", ["compatible", "strict"])
def test_rest(told: Any, form: str) -> None:
    got = told[form]
    assert got["json"] == got["binary"] == ANSWER
    assert got["texts"] == ["1", "2", "3"]
    assert got["missing"][:2] == ["HTTPStatusError", 400]
    assert "expected 2 inputs but got 1 inputs" in got["missing"][2]
    assert got["unknown"][:2] == ["HTTPStatusError", 404]
    assert "Request for unknown model: 'nope' is not found" in got["unknown"][2]


def test_rest_about_health_in_the_strict_form(told: Any) -> None:
    assert told["strict"]["health"][:3] == [True, True, True]
    assert not told["strict"]["health"][3]


def test_grpc(told: Any) -> None:
    got = told["grpc"]
    assert got["binary"] == got["typed"] == ANSWER
    assert got["health"] == [True, True, True, False]
    assert got["missing"][0] == "INVALID_ARGUMENT"
    assert "expected 2 inputs but got 1 inputs" in got["missing"][1]

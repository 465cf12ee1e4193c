"""What a real Triton answered, asked again of us: status, headers that matter, and body."""

from __future__ import annotations

import ast
import http.client
import json
import re
from typing import Any

import grpc
import pytest
from google.protobuf import json_format

from millpond.serve.proto import inference_pb2 as pb
from tests.support.triton_server import GOLDEN, TritonServer

HTTP: list[dict[str, Any]] = json.loads((GOLDEN / "http.json").read_text())
GRPC: list[dict[str, Any]] = json.loads((GOLDEN / "grpc.json").read_text())
COUNTERS = ("last_inference", "inference_count", "execution_count", "inference_stats", "batch_stats", "response_stats")
HEADERS = ("Content-Type", "Inference-Header-Content-Length", "Transfer-Encoding")


def steady(body: bytes, name: str) -> object:
    """A body without what differs from run to run."""
    text = body.decode("latin-1")
    if name.endswith("stats"):
        document = json.loads(text)
        for model in document["model_stats"]:
            for counter in COUNTERS:
                assert counter in model
                del model[counter]
        return document
    text = re.sub(r"Got input\(s\) \[(.*?)\]", lambda found: "Got " + ",".join(sorted(found[1].split(","))), text)
    return re.sub(r"  \S*err/1/model.py", "  err/1/model.py", text)


@pytest.mark.parametrize("recorded", HTTP, ids=lambda r: f"{r['method']} {r['path']} {r['status']}")
def test_http_answers_are_those_of_the_recording(golden_server: TritonServer, recorded: dict[str, Any]) -> None:
    body = recorded["req"]
    connection = http.client.HTTPConnection(golden_server.http, timeout=30)
    connection.request(
        recorded["method"],
        recorded["path"],
        body if isinstance(body, str | None) else json.dumps(body),
        recorded["req_headers"] or {},
    )
    response = connection.getresponse()
    answer = response.read()
    connection.close()
    wanted = recorded["body"]
    expected = ast.literal_eval(wanted) if wanted.startswith("b'") else wanted.encode()
    assert steady(answer, recorded["path"]) == steady(expected, recorded["path"])
    assert response.status == recorded["status"]
    for name in HEADERS:
        assert response.headers.get(name) == recorded["headers"].get(name)


@pytest.mark.parametrize("recorded", GRPC, ids=lambda r: f"{r['rpc']} {r['tag']}")
def test_grpc_answers_are_those_of_the_recording(golden_server: TritonServer, recorded: dict[str, Any]) -> None:
    name = recorded["rpc"]
    is_stream = name == "ModelStreamInfer"
    request_type = pb.ModelInferRequest if is_stream else getattr(pb, f"{name}Request")
    response_type = getattr(pb, f"{name}Response")
    path = f"/inference.GRPCInferenceService/{name}"
    with grpc.insecure_channel(golden_server.grpc) as channel:
        try:
            if is_stream:
                requests = [json_format.ParseDict(item, request_type()) for item in recorded["req"]]
                stream = channel.stream_stream(path, request_type.SerializeToString, response_type.FromString)
                found: object = [as_document(item) for item in stream(iter(requests), timeout=30)]
            else:
                unary = channel.unary_unary(path, request_type.SerializeToString, response_type.FromString)
                found = as_document(unary(json_format.ParseDict(recorded["req"], request_type()), timeout=30))
            code, details = "OK", None
        except grpc.RpcError as error:
            code, details, found = error.code().name, error.details(), None
    assert (code, details) == (recorded["code"], recorded.get("details"))
    if code == "OK":
        assert found == recorded["resp"]


def as_document(message: Any) -> dict[str, Any]:
    return json_format.MessageToDict(message, preserving_proto_field_name=True)

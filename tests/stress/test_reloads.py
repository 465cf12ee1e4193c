"""Versions of a model come and go under traffic over HTTP and gRPC: no request is lost or answered by a wrong one.

With a back end in the server's process, and with worker processes that start and end for every change. A few changes
are part of the suite, a thousand are marked `stress`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc.aio
import numpy as np
import pytest

from millpond.serve.proto import inference_pb2 as pb
from millpond.serve.servables.backend import Replies
from millpond.serve.servables.limits import ServableLimits
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.tensors import Tensor
from tests.support.fuzzing.web import HttpRequest, ask
from tests.support.memory_backend import MemoryBackend, MemoryInstance
from tests.support.triton_server import TritonServer

CONFIG = """backend: "%s" max_batch_size: 8 dynamic_batching { }
instance_group [ { count: %d kind: KIND_CPU } ]
version_policy { all { } }
input { name: "X" data_type: TYPE_INT32 dims: [ 1 ] }
output { name: "X" data_type: TYPE_INT32 dims: [ 1 ] }
output { name: "VERSION" data_type: TYPE_INT32 dims: [ 1 ] }
"""
SOURCE = """
import numpy as np
import triton_python_backend_utils as pb
class TritonPythonModel:
    def initialize(self, args):
        self.version = int(args["model_version"])
    def execute(self, requests):
        answers = []
        for request in requests:
            x = request.inputs()[0].as_numpy()
            version = np.full_like(x, self.version)
            answers.append(pb.InferenceResponse([pb.Tensor("X", x), pb.Tensor("VERSION", version)]))
        return answers
"""
CLIENTS = 6
INSTANCES = {"memory": 2, "python": 1}  # a worker process each


async def work(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
    """Takes a moment, then gives the input back and says which version it is."""
    await asyncio.sleep(0.002)
    for index, request in enumerate(requests):
        version = np.full_like(request.inputs["X"].array, instance.version)
        outputs = {"X": request.inputs["X"], "VERSION": Tensor("VERSION", "INT32", version)}
        replies.send(index, InferResponse(instance.config.name, instance.version, outputs))


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def server(tmp_path: Path, backend: str) -> Iterator[TritonServer]:
    model = tmp_path / "models" / "m"
    for version in (1, 2, 3):
        (model / str(version)).mkdir(parents=True)
        (model / str(version) / "model.py").write_text(SOURCE)
    (model / "config.pbtxt").write_text(CONFIG % (backend, INSTANCES[backend]))
    # A machine that stands still for minutes must not look like a request that is given up while its version goes.
    limits = ServableLimits(drain_s=1200)
    server = TritonServer(tmp_path / "models", ["m"], backends={"memory": MemoryBackend(work)}, limits=limits)
    yield server
    server.close()


@dataclass
class Served:
    """Which versions were served at any time since a request began: those alone may answer it."""

    now: frozenset[int] = frozenset((1, 2, 3))
    stop: bool = False
    answered: int = 0

    def __post_init__(self) -> None:
        self.changes = [(self.now, self.now)]  # versions that are there, and that may be

    def begin(self, versions: frozenset[int]) -> None:
        self.changes.append((self.now & versions, self.now | versions))

    def end(self, versions: frozenset[int]) -> None:
        self.now = versions
        self.changes.append((versions, versions))


async def over_http(server: TritonServer, number: int, version: int) -> tuple[int, int] | str:
    tensor = {"name": "X", "datatype": "INT32", "shape": [1, 1], "data": [number]}
    path = f"/v2/models/m{f'/versions/{version}' if version else ''}/infer"
    answer = await ask(server.http, HttpRequest("POST", path, json.dumps({"inputs": [tensor]}).encode()))
    document = json.loads(answer.body)
    if answer.status != 200:
        return str(document["error"])
    values = {output["name"]: output["data"][0] for output in document["outputs"]}
    assert document["model_version"] == str(values["VERSION"])
    return values["X"], values["VERSION"]


async def over_grpc(channel: grpc.aio.Channel, number: int, version: int) -> tuple[int, int] | str:
    request = pb.ModelInferRequest(model_name="m", model_version=str(version) if version else "")
    request.inputs.add(name="X", datatype="INT32", shape=[1, 1])
    request.raw_input_contents.append(np.array([number], np.int32).tobytes())
    try:
        data = await channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(request.SerializeToString())
    except grpc.aio.AioRpcError as error:
        return error.details() or ""
    response = pb.ModelInferResponse.FromString(data)
    raw = {
        output.name: int(np.frombuffer(content, np.int32)[0])
        for output, content in zip(response.outputs, response.raw_output_contents, strict=True)
    }
    assert response.model_version == str(raw["VERSION"])
    return raw["X"], raw["VERSION"]


async def client(server: TritonServer, channel: grpc.aio.Channel, served: Served, first: int) -> None:
    number = first
    while not served.stop:
        number += CLIENTS
        version = (0, 0, 1, 2, 3)[number % 5]
        began = len(served.changes) - 1
        is_http = number % 2
        answer = await (over_http(server, number, version) if is_http else over_grpc(channel, number, version))
        possible = served.changes[began:]
        if isinstance(answer, str):  # only a version that was named and not there all the time may be refused
            assert version, answer
            assert not all(version in sure for sure, _ in possible), (answer, possible)
            assert f"version {version} is not" in answer
        else:
            assert answer[0] == number
            assert answer[1] in frozenset().union(*(maybe for _, maybe in possible))
            assert not version or answer[1] == version
        served.answered += 1


async def reload(
    server: TritonServer, backend: str, versions: Sequence[int], channel: grpc.aio.Channel | None
) -> None:
    """Loads exactly these versions, over gRPC or HTTP."""
    config = json.dumps({
        "backend": backend, "max_batch_size": 8, "dynamic_batching": {},
        "instance_group": [{"count": INSTANCES[backend], "kind": "KIND_CPU"}],
        "version_policy": {"specific": {"versions": list(versions)}},
        "input": [{"name": "X", "data_type": "TYPE_INT32", "dims": [1]}],
        "output": [{"name": name, "data_type": "TYPE_INT32", "dims": [1]} for name in ("X", "VERSION")],
    })  # fmt: skip
    if channel is None:
        body = json.dumps({"parameters": {"config": config}}).encode()
        answer = await ask(server.http, HttpRequest("POST", "/v2/repository/models/m/load", body))
        assert answer.status == 200, answer
    else:
        request = pb.RepositoryModelLoadRequest(model_name="m")
        request.parameters["config"].string_param = config
        call = channel.unary_unary("/inference.GRPCInferenceService/RepositoryModelLoad")
        await call(request.SerializeToString())


@pytest.mark.parametrize(
    ("backend", "count"),
    [
        ("memory", 50),
        ("python", 4),
        pytest.param("memory", 1000, marks=pytest.mark.stress),
        pytest.param("python", 1000, marks=pytest.mark.stress),
    ],
    indirect=["backend"],
)
async def test_no_request_is_lost_or_answered_by_a_wrong_version(
    server: TritonServer, backend: str, count: int
) -> None:
    sets = ((1,), (1, 2), (2, 3), (3,), (1, 3), (2,), (1, 2, 3))
    served = Served()
    async with grpc.aio.insecure_channel(server.grpc) as channel, asyncio.TaskGroup() as group:
        for first in range(CLIENTS):
            group.create_task(client(server, channel, served, first))
        for number in range(count):
            versions = frozenset(sets[number % len(sets)])
            served.begin(versions)
            await reload(server, backend, sorted(versions), channel if number % 2 else None)
            served.end(versions)
        served.stop = True
    assert served.answered > count
    print(f"{count} changes, {served.answered} requests")

"""Models that break, seen over the wire: their reason is in the index, they come back, others serve on."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from millpond.serve.backends.in_workers import make_worker_backends
from millpond.serve.backends.registry_calls import RegistryCalls
from millpond.serve.backends.worker_instance import WorkerSurroundings
from millpond.serve.servables.limits import ServableLimits
from millpond.serve.workers.worker import WorkerLimits
from tests.support.triton_server import TritonServer

CONFIG = """backend: "python"
input [ { name: "IN" data_type: TYPE_INT32 dims: [ 1 ] } ]
output [ { name: "OUT" data_type: TYPE_INT32 dims: [ 1 ] } ]
"""
MODEL = """
import os, signal
import triton_python_backend_utils as pb
class TritonPythonModel:
    def initialize(self, args):
        %s
    def execute(self, requests):
        number = int(requests[0].inputs()[0].as_numpy()[0])
        if number == 1:
            os.kill(os.getpid(), signal.SIGSEGV)
        if number == 2:
            while True:
                pass
        if number == 3:
            raise ValueError("not this one")
        return [pb.InferenceResponse([pb.Tensor("OUT", r.inputs()[0].as_numpy())]) for r in requests]
"""
BROKEN = {
    "leaves": ("os._exit(3)", "exited with status 3"),
    "leaks": (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (8 << 30, 8 << 30)); "
        "self.kept = [bytearray(1 << 40)]",
        "MemoryError",
    ),
    "raises": ("raise RuntimeError('no weights')", "no weights"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder = tmp_path_factory.mktemp("models")
    models = {name: MODEL % start for name, (start, _) in BROKEN.items()}
    models |= {"calm": MODEL % "pass", "wild": MODEL % "pass", "typo": "class TritonPythonModel:\n    def ("}
    for name, source in models.items():
        (folder / name / "1").mkdir(parents=True)
        (folder / name / "config.pbtxt").write_text(CONFIG)
        (folder / name / "1" / "model.py").write_text(textwrap.dedent(source))
    limits = WorkerLimits(load_timeout_s=120.0, silence_timeout_s=2.0)
    backends = make_worker_backends(WorkerSurroundings(limits, RegistryCalls()))
    restarts = ServableLimits(restart_first_s=0.05)
    server = TritonServer(folder, ["calm", "wild"], backends=backends, limits=restarts)
    yield server
    server.close()


def ask(server: TritonServer, model: str, number: int) -> httpx.Response:
    tensor = {"name": "IN", "datatype": "INT32", "shape": [1], "data": [number]}
    return httpx.post(f"http://{server.http}/v2/models/{model}/infer", json={"inputs": [tensor]}, timeout=60)


def index(server: TritonServer) -> dict[str, dict[str, Any]]:
    entries = httpx.post(f"http://{server.http}/v2/repository/index", json={}, timeout=60).json()
    return {entry["name"]: entry for entry in entries}


def assert_calm(server: TritonServer) -> None:
    assert ask(server, "calm", 7).json()["outputs"][0]["data"] == [7]


REASONS = {name: reason for name, (_, reason) in BROKEN.items()} | {"typo": "Syntax"}


@pytest.mark.parametrize(("name", "reason"), REASONS.items())
def test_a_model_that_cannot_start_is_unavailable_and_the_index_says_why(
    server: TritonServer, name: str, reason: str
) -> None:
    loaded = httpx.post(f"http://{server.http}/v2/repository/models/{name}/load", json={}, timeout=60)
    assert loaded.status_code == 400
    assert reason in loaded.json()["error"]
    entry = index(server)[name]
    assert entry["state"] == "UNAVAILABLE"
    assert reason in entry["reason"]
    assert ask(server, name, 7).status_code == 404
    assert_calm(server)


@pytest.mark.parametrize(("number", "how"), [(1, "SIGSEGV"), (2, "gave no sign for 2 seconds")])
def test_a_model_that_dies_or_hangs_is_told_and_started_again(server: TritonServer, number: int, how: str) -> None:
    for _ in range(2):  # the second restart waits
        answer = ask(server, "wild", number)
        assert answer.status_code == 503
        assert how in answer.text
        assert_calm(server)
        deadline = time.monotonic() + 120
        while (answer := ask(server, "wild", 9)).status_code == 503 and time.monotonic() < deadline:
            time.sleep(0.02)
        assert answer.json()["outputs"][0]["data"] == [9]
    assert index(server)["wild"]["state"] == "READY"


def test_a_model_that_raises_fails_its_request_only(server: TritonServer) -> None:
    answer = ask(server, "wild", 3)
    assert answer.status_code == 500
    assert "not this one" in answer.text
    assert ask(server, "wild", 4).json()["outputs"][0]["data"] == [4]

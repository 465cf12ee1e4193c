"""Large requests are read where a worker reads them, and answered right whatever becomes of that worker meanwhile."""

from __future__ import annotations

import os
import random
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from tests.support.triton_server import TritonServer

SIZE = 100_000
CONFIG = """backend: "python"
max_batch_size: 8
input [ { name: "IN" data_type: TYPE_INT32 dims: [ %d ] } ]
output [ { name: "OUT" data_type: TYPE_INT64 dims: [ 2 ] } ]
"""
MODEL = """
import numpy as np
import triton_python_backend_utils as pb
class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            array = request.inputs()[0].as_numpy()
            sums = np.stack([array.sum(1, dtype=np.int64), array[:, ::7].sum(1, dtype=np.int64)], 1)
            array[:] = -1  # its own from now on
            answers.append(pb.InferenceResponse([pb.Tensor("OUT", sums)]))
        return answers
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    folder: Path = tmp_path_factory.mktemp("models")
    (folder / "sums" / "1").mkdir(parents=True)
    (folder / "sums" / "config.pbtxt").write_text(CONFIG % SIZE)
    (folder / "sums" / "1" / "model.py").write_text(MODEL)
    server = TritonServer(folder, ["sums"])
    yield server
    server.close()


def worker(server: TritonServer) -> Any:
    """The process of the model, as the gateway sees it."""
    instance: Any = server.servables.find("sums", None).replicas[0].instance
    return instance.worker


def used_bytes(server: TritonServer) -> int:
    """What is allocated for requests to the worker."""

    async def count() -> int:
        tensors = worker(server)._process.tensors
        tensors.loans.lend(1 << 60)  # too large: only looks at what was dropped
        found: int = tensors.writer.used_bytes
        return found

    return server.run(count)


def sums(array: np.ndarray[Any, Any]) -> list[list[int]]:
    return [[int(array.sum(dtype=np.int64)), int(array[0, ::7].sum(dtype=np.int64))]]


def ask(module: Any, address: str, seed: int) -> bool:
    """Sends a few requests on one connection, and says whether all answers were right."""
    random = np.random.default_rng(seed)
    with module.InferenceServerClient(address) as client:
        for _ in range(8):
            array = random.integers(-1000, 1000, (1, SIZE), dtype=np.int32)
            given = module.InferInput("IN", [1, SIZE], "INT32")
            given.set_data_from_numpy(array)
            if client.infer("sums", [given]).as_numpy("OUT").tolist() != sums(array):
                return False
    return True


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_many_clients_get_the_sums_of_their_own_numbers_and_leave_nothing(server: TritonServer, protocol: str) -> None:
    module, address = (
        (tritonclient.http, server.http) if protocol == "http" else (tritonclient.grpc, server.grpc)
    )  # gevent's client is used from one thread at a time
    found: list[bool] = []
    if protocol == "http":
        found = [ask(module, address, seed) for seed in range(4)]
    else:
        threads = [
            threading.Thread(target=lambda seed: found.append(ask(module, address, seed)), args=(seed,))
            for seed in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert found == [True] * 4
    deadline = time.monotonic() + 10
    while used_bytes(server) > 2 * 4 * SIZE and time.monotonic() < deadline:
        time.sleep(0.02)  # the worker says what it has read with its next answer: the last request's place may be left
    assert used_bytes(server) <= 2 * 4 * SIZE


def test_a_body_half_read_when_its_worker_dies_is_answered_by_the_next_one(server: TritonServer) -> None:
    random_numbers = np.random.default_rng(9)
    with socket.create_connection(server.http.split(":")) as connection:  # type: ignore[arg-type]  # "127.0.0.1", "1"
        connection.settimeout(30)
        for turn in range(4):
            array = random_numbers.integers(-1000, 1000, (1, SIZE), dtype=np.int32)
            data = http_request(array)
            cut = random.Random(turn).randrange(1000, len(data) - 1000)
            connection.sendall(data[:cut])
            if turn >= 2:  # by now bodies are read into the worker's arena
                time.sleep(0.2)
                os.kill(worker(server).pid, signal.SIGKILL)
                wait_until_noticed(server)
            connection.sendall(data[cut:])
            assert read_answer(connection)["outputs"][0]["data"] == sums(array)[0]


def http_request(array: np.ndarray[Any, Any]) -> bytes:
    head = (
        b'{"inputs": [{"name": "IN", "shape": [1, %d], "datatype": "INT32", "parameters": {"binary_data_size": %d}}]}'
    ) % (SIZE, array.nbytes)
    lines = [
        "POST /v2/models/sums/infer HTTP/1.1",
        "Host: localhost",
        f"Inference-Header-Content-Length: {len(head)}",
        f"Content-Length: {len(head) + array.nbytes}",
    ]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + head + array.tobytes()


def read_answer(connection: socket.socket) -> Any:
    parsed = b""
    while b"\r\n\r\n" not in parsed:
        parsed += connection.recv(1 << 16)
    head, _, body = parsed.partition(b"\r\n\r\n")
    lines = head.lower().split(b"\r\n")
    length = next(int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length"))
    while len(body) < length:
        body += connection.recv(1 << 16)
    assert head.startswith(b"HTTP/1.1 200"), parsed
    return httpx.Response(200, content=body).json()


def wait_until_noticed(server: TritonServer) -> None:
    deadline = time.monotonic() + 30
    while worker(server).is_up and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not worker(server).is_up

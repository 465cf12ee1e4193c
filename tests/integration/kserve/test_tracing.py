"""Trace files, read back: the records that a real Triton wrote for the same requests, under all its settings."""

from __future__ import annotations

import json
import queue
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from millpond.serve.kserve.settings import TritonSettings
from tests.support.fuzzing.web import HttpRequest, ask
from tests.support.triton_server import GOLDEN, TritonServer

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import tritonclient.grpc as grpc_client
    import tritonclient.http as http_client

COMPUTE = ["COMPUTE_START", "COMPUTE_INPUT_END", "COMPUTE_OUTPUT_START", "COMPUTE_END"]
START = ["REQUEST_START", "QUEUE_START"]
HTTP = ["HTTP_RECV_START", "HTTP_RECV_END", "INFER_RESPONSE_COMPLETE", "HTTP_SEND_START", "HTTP_SEND_END"]
GRPC = ["GRPC_WAITREAD_START", "GRPC_WAITREAD_END", "INFER_RESPONSE_COMPLETE", "GRPC_SEND_START", "GRPC_SEND_END"]
Start = Callable[..., tuple[TritonServer, Path]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    opened: list[TritonServer] = []

    def start(**settings: Any) -> tuple[TritonServer, Path]:
        path = tmp_path / "trace.json"
        given = {"trace_rate": 1, "trace_level": ("TIMESTAMPS",), **settings}
        server = TritonServer(GOLDEN / "models", ("simple", "ens"), TritonSettings(trace_file=str(path), **given))
        opened.append(server)
        return server, path

    yield start
    for server in opened:
        server.close()


def inputs(module: Any, *names: str) -> list[Any]:
    made = []
    for name in names or ("INPUT0", "INPUT1"):
        item = module.InferInput(name, [1, 16], "INT32")
        item.set_data_from_numpy(np.arange(16, dtype=np.int32).reshape(1, 16))
        made.append(item)
    return made


def infer(server: TritonServer, model: str = "simple", *names: str, **options: Any) -> None:
    with http_client.InferenceServerClient(server.http) as client:
        client.infer(model, inputs(http_client, *names), **options)


def read(server: TritonServer, path: Path, count: int) -> dict[int, list[dict[str, Any]]]:
    """The records of a file by trace, once it has so many traces."""
    deadline = time.monotonic() + 30
    while True:
        server.server.tracer.flush()
        traces = read_now(path) if path.exists() else {}
        if len(traces) >= count or time.monotonic() > deadline:
            assert len(traces) == count
            return traces
        time.sleep(0.02)


def read_now(path: Path) -> dict[int, list[dict[str, Any]]]:
    traces: dict[int, list[dict[str, Any]]] = {}
    for record in json.loads(path.read_bytes()):
        traces.setdefault(record["id"], []).append(record)
    return traces


def times(records: list[dict[str, Any]]) -> dict[str, int]:
    [names] = [[stamp for record in records for stamp in record.get("timestamps", ())]]
    assert len({stamp["name"] for stamp in names}) == len(names)
    return {stamp["name"]: stamp["ns"] for stamp in names}


def heads(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [record for record in records if "model_name" in record]


def test_a_request_over_http_has_its_times_in_order(start: Start) -> None:
    server, path = start()
    infer(server, request_id='a"b')
    [(number, records)] = read(server, path, 1).items()
    assert heads(records) == [{"id": number, "model_name": "simple", "model_version": 1, "request_id": 'a"b'}]
    found = times(records)
    assert sorted(found) == sorted([*HTTP, *START, *COMPUTE, "REQUEST_END"])
    order = ["HTTP_RECV_START", "HTTP_RECV_END", *START, *COMPUTE[:3], "INFER_RESPONSE_COMPLETE", "HTTP_SEND_START"]
    stamps = [found[name] for name in [*order, "HTTP_SEND_END"]]
    assert stamps == sorted(stamps)


def test_requests_over_grpc_and_in_a_stream_are_traced(start: Start) -> None:
    server, path = start()
    done: queue.Queue[Any] = queue.Queue()
    with grpc_client.InferenceServerClient(server.grpc) as client:
        client.infer("simple", inputs(grpc_client), request_id="one")
        client.start_stream(lambda result, error: done.put((result, error)))
        client.async_stream_infer("simple", inputs(grpc_client), request_id="two")
        assert done.get(timeout=30)[1] is None
        client.stop_stream()
    traces = read(server, path, 2)
    assert [heads(records)[0]["request_id"] for records in traces.values()] == ["one", "two"]
    for records in traces.values():
        assert sorted(times(records)) == sorted([*GRPC, *START, *COMPUTE, "REQUEST_END"])


def test_tensors_are_shown_as_text(start: Start) -> None:
    server, path = start(trace_level=("TENSORS",))
    infer(server)
    [records] = read(server, path, 1).values()
    shown = [(record["activity"], record["tensor"]) for record in records if "activity" in record]
    line = ",".join(map(str, range(16)))
    assert shown[0] == (
        "TENSOR_QUEUE_INPUT", {"name": "INPUT0", "data": line, "shape": "1,16", "dtype": "INT32"}
    )  # fmt: skip
    assert [(activity, tensor["name"]) for activity, tensor in shown[1:]] == [
        ("TENSOR_QUEUE_INPUT", "INPUT1"), ("TENSOR_BACKEND_OUTPUT", "OUTPUT0"), ("TENSOR_BACKEND_OUTPUT", "OUTPUT1")
    ]  # fmt: skip
    assert shown[2][1]["data"] == ",".join(str(2 * number) for number in range(16))
    assert times(records) == {}


def test_steps_of_an_ensemble_name_their_parent(start: Start) -> None:
    server, path = start()
    infer(server, "ens", "X")
    traces = read(server, path, 3)
    [root] = [number for number, records in traces.items() if heads(records)[0]["model_name"] == "ens"]
    steps = [heads(records)[0] for number, records in traces.items() if number != root]
    assert [(step["model_name"], step["parent_id"]) for step in steps] == [("simple", root)] * 2
    assert all(sorted(times(traces[s["id"]])) == sorted([*START, *COMPUTE, "REQUEST_END"]) for s in steps)
    assert sorted(times(traces[root])) == sorted([*HTTP, *START, "REQUEST_END"])


def test_rate_count_and_frequency_decide_which_are_traced_and_where(start: Start) -> None:
    server, path = start(trace_rate=2, trace_count=3, log_frequency=2)
    for _ in range(12):
        infer(server)
    read(server, path.with_name("trace.json.0"), 2)
    read(server, path.with_name("trace.json.1"), 1)
    assert sorted(one.name for one in path.parent.iterdir()) == ["trace.json.0", "trace.json.1"]
    with http_client.InferenceServerClient(server.http) as client:
        assert client.get_trace_settings()["trace_count"] == "0"
        client.update_trace_settings(settings={"trace_count": "5", "log_frequency": "0", "trace_rate": "1"})
    infer(server)
    read(server, path, 1)


def test_a_model_is_traced_by_its_own_settings(start: Start) -> None:
    server, path = start(trace_level=("OFF",))
    infer(server)
    with http_client.InferenceServerClient(server.http) as client:
        client.update_trace_settings("ens", {"trace_level": ["TIMESTAMPS"], "trace_rate": "1"})
    infer(server)
    infer(server, "ens", "X")
    names = sorted(heads(records)[0]["model_name"] for records in read(server, path, 3).values())
    assert names == ["ens", "simple", "simple"]


async def test_a_refused_request_is_no_trace_and_generate_is_one(start: Start) -> None:
    server, path = start()
    refused = HttpRequest("POST", "/v2/models/simple/infer", b'{"inputs": []}')
    assert (await ask(server.http, refused)).status == 400
    body = json.dumps({"INPUT0": list(range(16)), "INPUT1": list(range(16))}).encode()
    assert (await ask(server.http, HttpRequest("POST", "/v2/models/simple/generate", body))).status == 200
    [records] = read(server, path, 1).values()
    assert sorted(times(records)) == sorted([*HTTP, *START, *COMPUTE, "REQUEST_END"])


def test_a_folder_that_is_not_there_harms_no_request(tmp_path: Path) -> None:
    settings = TritonSettings(trace_file=str(tmp_path / "no" / "trace"), trace_rate=1, trace_level=("TIMESTAMPS",))
    server = TritonServer(GOLDEN / "models", ("simple",), settings)
    try:
        for _ in range(3):
            infer(server)
    finally:
        server.close()
    assert list(tmp_path.iterdir()) == []

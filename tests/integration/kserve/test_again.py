"""The same request again and again, which is answered on a shorter way, has the same answer as the first time."""

from __future__ import annotations

import gc
import json
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http

from millpond.serve.servables.messages import InferRequest
from tests.support.triton_server import TritonServer


def raw_request(arrays: dict[str, np.ndarray[Any, Any]], outputs: list[str], **more: Any) -> tuple[bytes, int]:
    """Returns a body of JSON with raw tensors behind it, and the size of the JSON."""
    inputs = [
        {"name": name, "shape": array.shape, "datatype": "INT32", "parameters": {"binary_data_size": array.nbytes}}
        for name, array in arrays.items()
    ]
    wanted = [{"name": name, "parameters": {"binary_data": True}} for name in outputs]
    head = json.dumps({"inputs": inputs, "outputs": wanted, **more}).encode()
    return head + b"".join(array.tobytes() for array in arrays.values()), len(head)


def send(client: httpx.Client, model: str, body: bytes, json_bytes: int, **headers: str) -> httpx.Response:
    given = {"Inference-Header-Content-Length": str(json_bytes), **headers}
    return client.post(f"/v2/models/{model}/infer", content=body, headers=given)


def parts(response: httpx.Response) -> tuple[Any, bytes]:
    """Returns a response's JSON and its raw bytes."""
    length = int(response.headers["inference-header-content-length"])
    return json.loads(response.content[:length]), response.content[length:]


@pytest.fixture
def client(golden_server: TritonServer) -> Any:
    with httpx.Client(
        base_url=f"http://{golden_server.http}", headers={"Accept-Encoding": "identity"}, timeout=30
    ) as made:
        yield made


def pair(seed: int, rows: int = 1) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(seed)
    return {name: random.integers(0, 999, (rows, 16), dtype=np.int32) for name in ("INPUT0", "INPUT1")}


@pytest.mark.parametrize(("model", "names", "output"), [("simple", 2, "OUTPUT0"), ("ens", 1, "Y")])
def test_other_numbers_behind_the_same_json_are_computed_anew(
    client: httpx.Client, model: str, names: int, output: str
) -> None:
    first: Any = None
    for seed in range(5):
        arrays = pair(seed)
        inputs = arrays if names == 2 else {"X": arrays["INPUT0"]}
        response = send(client, model, *raw_request(inputs, [output]))
        assert response.status_code == 200, response.text
        document, raw = parts(response)
        first = first or (document, {name: value for name, value in response.headers.items() if name != "date"})
        assert (document, dict(response.headers)) == first
        other = arrays["INPUT1"] if names == 2 else arrays["INPUT0"]
        assert raw == (arrays["INPUT0"] + other).tobytes()


def test_what_differs_in_the_json_or_the_size_is_seen(client: httpx.Client) -> None:
    for _ in range(3):
        for rows in (1, 2):
            arrays = pair(rows, rows)
            body, size = raw_request(arrays, ["OUTPUT0", "OUTPUT1"])
            document, raw = parts(send(client, "simple", body, size))
            assert [output["shape"] for output in document["outputs"]] == [[rows, 16]] * 2
            total, difference = arrays["INPUT0"] + arrays["INPUT1"], arrays["INPUT0"] - arrays["INPUT1"]
            assert raw == total.tobytes() + difference.tobytes()
        named = send(client, "simple", *raw_request(pair(1), ["OUTPUT0"], id="seven"))
        assert parts(named)[0]["id"] == "seven"
        short = send(client, "simple", body[:-1], size)
        long = send(client, "simple", body + b"x", size)
        assert short.status_code >= 400
        assert long.status_code >= 400
        assert "unexpected additional input data" in long.text


def test_a_coding_and_a_last_request_are_answered_as_such(client: httpx.Client) -> None:
    arrays = pair(3, 4)
    body, size = raw_request(arrays, ["OUTPUT0"])
    plain = send(client, "simple", body, size)
    for _ in range(3):
        packed = send(client, "simple", body, size, **{"Accept-Encoding": "gzip"})
        assert packed.headers["content-encoding"] == "gzip"
        assert packed.content == plain.content
        last = send(client, "simple", body, size, Connection="close")
        assert last.headers["connection"] == "close"
        assert last.content == plain.content


def test_a_model_that_is_gone_or_another_version_is_not_answered_from_memory(
    client: httpx.Client, golden_server: TritonServer
) -> None:
    body, size = raw_request(pair(1), ["OUTPUT0"])
    for _ in range(2):
        assert send(client, "simple", body, size).status_code == 200
        assert client.post("/v2/repository/models/simple/unload").status_code == 200
        gone = send(client, "simple", body, size)
        assert gone.status_code in (400, 404)
        assert client.post("/v2/repository/models/simple/load").status_code == 200
        assert parts(send(client, "simple", body, size))[0]["model_version"] == "1"


@pytest.mark.parametrize(("model", "name"), [("simple", "INPUT1"), ("ens", "X")])
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_an_answered_request_is_let_go_without_looking_for_cycles(
    golden_server: TritonServer, protocol: str, model: str, name: str
) -> None:
    arrays = pair(3) if name == "INPUT1" else {"X": pair(3)["INPUT0"]}
    module = tritonclient.http if protocol == "http" else tritonclient.grpc
    inputs = []
    for one, array in arrays.items():
        inputs.append(module.InferInput(one, list(array.shape), "INT32"))
        inputs[-1].set_data_from_numpy(array)
    address = golden_server.http if protocol == "http" else golden_server.grpc
    with module.InferenceServerClient(address) as client:
        client.infer(model, inputs)
        gc.collect()
        gc.disable()
        try:
            before = held_requests()
            for _ in range(20):
                client.infer(model, inputs)
            # The last one may be held by what its loop ran last.
            assert held_requests() - before <= 2
        finally:
            gc.enable()


def held_requests() -> int:
    return sum(type(one) is InferRequest for one in gc.get_objects())

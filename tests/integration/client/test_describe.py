"""`millpond repository describe` and the routes behind it, on a class of a user in a running server."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest
import schemathesis

from millpond.cli.main import main
from tests.support.fuzzing.rooms import write_models
from tests.support.triton_server import TritonServer


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    server = TritonServer(write_models(tmp_path_factory.mktemp("room") / "models"), ["calc", "echo"])
    yield server
    server.close()


def describe(server: TritonServer, capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    assert main(["repository", "describe", "calc", "--url", f"http://{server.http}", *flags]) == 0
    return capsys.readouterr().out


def test_methods_are_told_in_words(server: TritonServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert describe(server, capsys).splitlines() == [
        "add(a: FP32[4], b: FP32[4]) -> sum: FP32[4]",
        "join(left: BYTES[1], right: BYTES[1] (optional)) -> text: BYTES[1]",
        "count(up_to: INT64[1]) -> stream of number: INT64[1]",
    ]


def test_openapi_is_that_of_the_model_and_valid(server: TritonServer, capsys: pytest.CaptureFixture[str]) -> None:
    document = json.loads(describe(server, capsys, "--openapi"))
    schemathesis.openapi.from_dict(document).validate()
    assert "/v2/models/calc/infer" in document["paths"]
    whole = httpx.get(f"http://{server.http}/v2/docs/openapi.json").json()
    schemathesis.openapi.from_dict(whole).validate()
    assert set(document["paths"]) | {"/v2/models/echo/infer", "/v2/models/echo/generate"} == set(whole["paths"])


def test_the_proto_file_has_a_message_a_method(server: TritonServer, capsys: pytest.CaptureFixture[str]) -> None:
    text = describe(server, capsys, "--proto")
    assert "  rpc Count(CountRequest) returns (stream CountResponse);\n" in text
    assert "message AddRequest {\n  repeated float a = 1;  // FP32[4]\n" in text


def test_what_is_not_served_is_not_described(server: TritonServer, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["repository", "describe", "../secret", "--url", f"http://{server.http}"]) == 1
    assert "404" in capsys.readouterr().err
    assert httpx.get(f"http://{server.http}/v2/docs/models/calc/versions/9/openapi.json").status_code == 404

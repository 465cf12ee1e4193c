"""Hundreds of malformed and hostile requests to a real server: an error object each, never a 5xx, and it lives on."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx2
import jsonschema_rs
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode

from tests.integration.openai.hostile import CHAT, COMPLETIONS, hostile_requests
from tests.support.server_process import ServerProcess

GENERATED = 25  # requests for each endpoint and mode


class Judge:
    """Says whether a response is one a server may give to anything at all."""

    def __init__(self, url: str) -> None:
        self.document = httpx2.get(f"{url}/openapi.json", timeout=60).json()
        self._validators: dict[str, Any] = {}

    def check(self, status: int, kind: str, text: str, reply: str) -> None:
        """`reply` is the schema of a success."""
        assert 200 <= status < 300 or 400 <= status < 500, f"{status}: {text[:500]}"
        if kind.startswith("text/event-stream"):
            assert text.endswith("data: [DONE]\n\n")
            assert '"error":' not in text
            return
        assert kind.startswith("application/json")
        self._validator(reply if status < 300 else "ErrorReply").validate(json.loads(text))

    def _validator(self, name: str) -> Any:
        if name not in self._validators:
            schema = {"$ref": f"#/components/schemas/{name}", "components": self.document["components"]}
            self._validators[name] = jsonschema_rs.validator_for(schema)
        return self._validators[name]


@pytest.fixture(scope="module")
def judge(server: ServerProcess) -> Judge:
    return Judge(server.url)


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    with requests.Session() as session:
        yield session


def is_alive(server: ServerProcess) -> bool:
    ready = httpx2.get(f"{server.url}/ready", timeout=60).json()["status"] == "ready"
    return ready and server.process.poll() is None


def test_hostile_requests_are_refused_one_by_one(
    server: ServerProcess, judge: Judge, session: requests.Session
) -> None:
    hostile = hostile_requests()
    assert len(hostile) > 400
    engine = server.children()
    passed = []
    for path, body in hostile:
        response = session.post(server.url + path, data=body, headers={"Content-Type": "application/json"}, timeout=60)
        reply = "ChatReply" if path == CHAT else "CompletionReply"
        judge.check(response.status_code, response.headers["content-type"], response.text, reply)
        if response.status_code < 400:
            passed.append((path, body[:200]))
    assert passed == []
    assert is_alive(server)
    assert server.children() == engine


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize(("path", "reply"), [(CHAT, "ChatReply"), (COMPLETIONS, "CompletionReply")])
def test_generated_requests_get_an_answer_or_an_error_object(
    server: ServerProcess, judge: Judge, session: requests.Session, path: str, reply: str, mode: GenerationMode
) -> None:
    operation = schemathesis.openapi.from_dict(judge.document)[path]["POST"]
    count = 0

    @settings(
        max_examples=GENERATED,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(operation.as_strategy(generation_mode=mode))
    def send(case: schemathesis.Case) -> None:
        nonlocal count
        count += 1
        if mode is GenerationMode.POSITIVE and isinstance(case.body, dict):
            # A random name is a 404 and says no more; a long answer of a random model neither.
            case.body.pop("model", None)
            case.body["max_tokens"] = case.body["max_completion_tokens"] = 4
            case.body.pop("min_tokens", None)
        response = case.call(base_url=server.url, session=session, timeout=60)
        judge.check(response.status_code, response.headers["content-type"][0], response.text, reply)

    send()
    assert count >= GENERATED
    assert is_alive(server)


@pytest.mark.parametrize(
    "head",
    [
        b"GARBAGE\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"POST /v1/completions HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: " + b"y" * 200_000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"X: y\r\n" * 50_000 + b"\r\n",
        b"GET /" + b"a" * 200_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        b"",
    ],
)
def test_broken_http_gets_a_4xx_or_a_closed_connection(server: ServerProcess, head: bytes) -> None:
    host, _, port = server.url.removeprefix("http://").partition(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        try:
            connection.sendall(head)
            connection.shutdown(socket.SHUT_WR)
            while data := connection.recv(65536):
                answer += data
        except OSError:
            pass  # closed on us, as it may
    assert not answer or answer.split()[1].startswith(b"4"), answer[:200]
    assert is_alive(server)

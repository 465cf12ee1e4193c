"""Hundreds of bad bodies and messages at a real server: TGI's error each, never a 5xx, and it lives on unharmed."""

from __future__ import annotations

import copy
import json
import random
import socket
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest

from millpond.serve.proto import generate_pb2 as pb
from tests.integration.openai.hostile import raw_bodies
from tests.support.shard_client import SERVICE, ShardClient, make_request

GENERATED = 90  # bodies for each route
GENERATE = {
    "inputs": "The mill",
    "parameters": {
        "max_new_tokens": 2, "best_of": 1, "temperature": 0.5, "top_k": 3, "top_p": 0.5, "typical_p": 0.5, "seed": 1,
        "do_sample": True, "stop": ["x"], "truncate": 4, "details": True, "top_n_tokens": 1, "watermark": False,
        "repetition_penalty": 1.1, "frequency_penalty": 0.1, "return_full_text": True, "decoder_input_details": False,
        "grammar": {"type": "regex", "value": "a"},
    },
}  # fmt: skip
CHAT = {
    "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2, "temperature": 0.5, "top_p": 0.5, "seed": 1,
    "stop": ["x"], "logprobs": True, "top_logprobs": 1, "presence_penalty": 0.1, "frequency_penalty": 0.1, "n": 1,
    "stream": False, "stream_options": {"include_usage": True}, "tool_choice": "auto", "model": "tgi",
    "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}],
    "response_format": {"type": "json_object", "value": {"properties": {}}}, "tool_prompt": "x", "guideline": "y",
}  # fmt: skip
COMPLETION = {"prompt": ["a", "b"], "max_tokens": 2, "temperature": 0.5, "stop": ["x"], "seed": 1, "stream": False}
ROUTES = {
    "/generate": GENERATE,
    "/generate_stream": GENERATE,
    "/": GENERATE | {"stream": True},
    "/tokenize": GENERATE,
    "/v1/chat/completions": CHAT,
    "/chat_tokenize": CHAT,
    "/v1/completions": COMPLETION,
    "/invocations": COMPLETION,
    "/vertex": {"instances": [GENERATE, CHAT]},
}
ODD: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**64, -(2**70), 1e308, 0.0, -0.5, "", "x", "\x00", "\U0001f3e0" * 40, [], [None], {},
    {"type": "json"}, {"type": "json", "value": "{"}, {"type": "json", "value": {"properties": {"a": {"$ref": "#/b"}}}},
    {"type": "regex", "value": "(((a{0,99}){0,99}){0,99}){0,99}"}, [[[]]], ["x"] * 70, "y" * 20_000,
)  # fmt: skip
PLAIN = (
    "Expected request with `Content-Type: application/json`",
    "Failed to parse the request body as JSON: ",
    "Failed to deserialize the JSON body into the target type: ",
    "Failed to buffer the request body: length limit exceeded",
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every part of a body."""
    if path:
        yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from places(part, (*path, key))


def mutated(body: Any, chance: random.Random) -> Any:
    """The body with one to three parts replaced or left out."""
    body = copy.deepcopy(body)
    for _ in range(chance.choice((1, 1, 2, 3))):
        way = chance.choice(list(places(body)) or [()])
        part = body
        for key in way[:-1]:
            part = part[key]
        if way and isinstance(part, dict) and chance.random() < 0.2:
            del part[way[-1]]
        elif way:
            part[way[-1]] = copy.deepcopy(chance.choice(ODD))
    if isinstance(body.get("parameters"), dict):  # an answer as long as fits is no error, but takes its time
        body["parameters"].setdefault("max_new_tokens", 2)
    return body


def check(response: httpx.Response) -> None:
    """An answer a TGI server may give."""
    assert response.status_code in (200, 400, 413, 415, 422, 429), (response.status_code, response.text[:500])
    kind = response.headers["content-type"]
    if kind.startswith("text/event-stream"):
        frames = response.text.removesuffix("data: [DONE]\n\n").split("\n\n")
        events = [json.loads(frame.removeprefix("data:")) for frame in frames if frame and not frame.startswith(":")]
        assert all("error" not in event for event in events[:-1])
        code = events[-1].get("error", {}) if isinstance(events[-1].get("error"), dict) else {}
        assert code.get("http_status_code", 422) in (422, 429)
        assert events[-1].get("error_type", "validation") != "incomplete_generation"
    elif response.status_code == 200:
        json.loads(response.text)
    elif kind.startswith("application/json"):
        assert set(response.json()) == {"error", "error_type"}
    else:
        assert response.text.startswith(PLAIN)


def is_alive(http: httpx.Client) -> bool:
    body = {"inputs": "The mill", "parameters": {"max_new_tokens": 3}}
    return http.get("/health").status_code == 200 and http.post("/generate", json=body).status_code == 200


@pytest.mark.parametrize("path", ROUTES)
def test_changed_bodies_are_answered_or_refused(http: httpx.Client, path: str) -> None:
    chance = random.Random(path)
    statuses = set()
    for _ in range(GENERATED):
        body = mutated(ROUTES[path], chance)
        response = http.post(path, content=json.dumps(body), headers={"content-type": "application/json"})
        check(response)
        statuses.add(response.status_code)
    assert 422 in statuses
    assert is_alive(http)


@pytest.mark.parametrize("path", ["/generate", "/v1/chat/completions", "/invocations"])
def test_bodies_that_are_no_json_of_ours_are_refused(http: httpx.Client, path: str) -> None:
    for body in raw_bodies():
        response = http.post(path, content=body, headers={"content-type": "application/json"})
        check(response)
        if not body.startswith(b'{"prompt"') or path != "/invocations":
            assert response.status_code in (200, 400, 422)
    assert is_alive(http)


def test_half_requests_and_odd_heads_harm_nobody(http: httpx.Client, tgi_url: str) -> None:
    host, _, port = tgi_url.removeprefix("http://").partition(":")
    for data in (
        b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{",
        b"POST /generate HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /generate HTTP/1.1\r\nHost: a\r\nHost: b\r\nContent-Length: 0\r\n\r\n",
        b"GET /" + b"x" * 70_000,
        b"\x16\x03\x01\x02\x00\x01\x00",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ):
        with socket.create_connection((host, int(port)), 10) as line:
            line.sendall(data)
            line.shutdown(socket.SHUT_WR)
            line.settimeout(30)
            while line.recv(1 << 16):
                pass
    assert is_alive(http)


def test_messages_that_are_none_and_odd_ones_have_a_status(http: httpx.Client, server: Any, socket_prefix: str) -> None:
    client = ShardClient(f"unix://{socket_prefix}-0")
    chance = random.Random(4)
    whole = pb.PrefillRequest(batch=pb.Batch(id=7, requests=[make_request(1, "x", 2), make_request(2, "y", 2)]))
    allowed = {
        grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.INTERNAL, grpc.StatusCode.UNIMPLEMENTED,
    }  # fmt: skip
    names = ("Prefill", "Decode", "FilterBatch", "Warmup", "ClearCache", "Info", "Nothing")
    codes = set()
    for _ in range(250):
        data = bytearray(whole.SerializeToString())
        for _ in range(chance.randrange(1, 6)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        method = client.channel.unary_unary(SERVICE + chance.choice(names))
        try:
            method(bytes(data), timeout=60)
        except grpc.RpcError as error:
            codes.add(error.code())  # type: ignore[attr-defined]
    assert codes <= allowed
    assert grpc.StatusCode.INVALID_ARGUMENT in codes
    client.clear()
    assert client.prefill(1, make_request(1, "x", 1)).generations[0].HasField("generated_text")
    client.close()
    assert is_alive(http)

"""The two ways of a stream's bytes, ASGI messages and the lent connection: the same bytes, bounds and ends."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx2
import pytest
from starlette.types import ASGIApp, Message, Scope

from millpond.config.schema import TgiConfig
from millpond.inference.text import TextModel
from millpond.serve.http.app import make_app
from millpond.serve.http.port import AppPort
from millpond.serve.http.tgi.app import make_tgi_app
from millpond.serve.http.tgi.settings import resolve_tgi
from millpond.serve.settings import ServeSettings
from tests.support.pushed_engine import PushedEngine
from tests.support.system_calls import sent_by_sockets
from tests.support.waiting import eventually

TEXT = 'A "mill"\\pond, \u2028 \u00e9\u4e16\U0001f680 <b>\t{}\n' * 3
PLAIN = {"prompt": "hi", "request_id": "r", "max_tokens": 400}
CHAT = {"messages": [{"role": "user", "content": "hi"}], "request_id": "r", "max_tokens": 400}
USAGE = {"stream_options": {"include_usage": True}}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}
OPENAI: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", PLAIN),
    ("/v1/completions", PLAIN | USAGE),
    ("/v1/completions", PLAIN | {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}),
    ("/v1/completions", PLAIN | {"echo": True}),
    ("/v1/completions", PLAIN | {"stop": ["\u4e16\U0001f680 <b>\t{}\nA"]}),
    ("/v1/completions", PLAIN | {"n": 2}),
    ("/v1/completions", PLAIN | {"prompt": ["hi", "ho"]}),
    ("/v1/chat/completions", CHAT),
    ("/v1/chat/completions", CHAT | USAGE),
    ("/v1/chat/completions", CHAT | {"n": 2}),
    ("/v1/chat/completions", CHAT | {"tools": [TOOL], "max_tokens": 200}),
]
TGI: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "hi", "model": "tgi"}),
    ("/v1/chat/completions", {"messages": CHAT["messages"], "model": "tgi", "stream_options": {"include_usage": True}}),
]


@pytest.fixture
def engine(text: TextModel) -> PushedEngine:
    return PushedEngine(text)


def openai_app(engine: PushedEngine, **settings: Any) -> ASGIApp:
    return make_app(engine, ServeSettings(**settings))


@asynccontextmanager
async def opened_port(app: ASGIApp) -> AsyncIterator[AppPort]:
    """The app on a real port, behind the parser that lends its connection."""

    async def drain(seconds: float) -> None:
        del seconds

    port = AppPort("test", app, host="127.0.0.1", port=0, param="test.port", drain=drain)
    await port.start()
    try:
        yield port
    finally:
        await port.stop()


@asynccontextmanager
async def served(app: ASGIApp) -> AsyncIterator[int]:
    """The number of such a port."""
    async with opened_port(app) as port:
        yield number_of(port)


def number_of(port: AppPort) -> int:
    return int(port.address.rpartition(":")[2])


def request_bytes(path: str, body: dict[str, Any]) -> bytes:
    content = json.dumps(body | {"stream": True}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nX-Request-Id: r\r\n"
    return f"{head}Connection: close\r\nContent-Length: {len(content)}\r\n\r\n".encode() + content


def unchunked(answer: bytes) -> bytes:
    """The body of a whole answer, whose chunks must be well-formed to their end."""
    head, _, rest = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), answer
    pieces: list[bytes] = []
    place = 0
    while True:
        end = rest.index(b"\r\n", place)
        begin, count = end + 2, int(rest[place:end], 16)
        place = begin + count + 2
        assert rest[begin + count : place] == b"\r\n"
        if not count:
            assert place == len(rest)
            return b"".join(pieces)
        pieces.append(rest[begin : begin + count])


async def started(engine: PushedEngine, count: int) -> None:
    async with asyncio.timeout(10):
        while len(engine.routes) < count:
            await asyncio.sleep(0.001)
    await asyncio.sleep(0.01)  # the stream waits for its first event now


async def push_text(engine: PushedEngine) -> None:
    """A token a step for every choice; characters of several tokens come in pieces."""
    tokens = engine.text.tokenizer.encode(TEXT, False)
    choices = engine.routes[0].request.params.n
    for token in tokens:
        for index in range(choices):
            engine.push([token], index=index)
        await asyncio.sleep(0)
    for index in range(choices):
        engine.push([engine.text.eos_token_ids[0]], "stop", index=index)


async def over_messages(app: ASGIApp, engine: PushedEngine, path: str, body: dict[str, Any]) -> bytes:
    async with httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost") as client:
        asked = asyncio.create_task(client.post(path, json=body | {"stream": True}, headers={"X-Request-Id": "r"}))
        await started(engine, num_prompts(body))
        await push_text(engine)
        return (await asked).content


async def over_connection(app: ASGIApp, engine: PushedEngine, path: str, body: dict[str, Any]) -> bytes:
    async with served(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_bytes(path, body))
        await started(engine, num_prompts(body))
        await push_text(engine)
        answer = await reader.read()
        writer.close()
    return unchunked(answer)


def num_prompts(body: dict[str, Any]) -> int:
    return len(body["prompt"]) if isinstance(body.get("prompt"), list) else 1


def comparable(data: bytes) -> list[bytes]:
    """The frames without what the clock says. Several prompts' frames come in any order."""
    return sorted(re.sub(rb'"created":\d+', b'"created":0', data).split(b"\n\n"))


async def same(make: Callable[[PushedEngine], ASGIApp], text: TextModel, path: str, body: dict[str, Any]) -> bytes:
    one, other = PushedEngine(text), PushedEngine(text)
    messages = await over_messages(make(one), one, path, body)
    connection = await over_connection(make(other), other, path, body)
    assert comparable(messages) == comparable(connection)
    if num_prompts(body) == 1:
        assert len(messages) == len(connection)
    assert not one.cancelled
    assert not other.cancelled
    return connection


@pytest.mark.parametrize(("path", "body"), OPENAI)
async def test_both_ways_give_the_same_bytes(text: TextModel, path: str, body: dict[str, Any]) -> None:
    data = await same(openai_app, text, path, body)
    frames = data.split(b"\n\n")
    assert frames[-2:] == [b"data: [DONE]", b""]
    said = ""
    for frame in frames[:-2]:
        event = json.loads(frame.removeprefix(b"data: "))
        for choice in event["choices"]:
            if choice["index"] == 0:
                said += choice["text"] if "text" in choice else choice["delta"].get("content", "")
    expected = TEXT if "stop" not in body else TEXT[: TEXT.index(body["stop"][0])]
    assert said.removeprefix("hi") == expected


@pytest.mark.parametrize("strict", [True, False])
async def test_both_ways_give_the_same_bytes_in_tgis_dialect(text: TextModel, strict: bool) -> None:
    settings = ServeSettings()

    def make(engine: PushedEngine) -> ASGIApp:
        gateway = make_app(engine, settings).state.gateway
        return make_tgi_app(gateway, resolve_tgi(TgiConfig(form="strict" if strict else "compatible"), settings))

    for path, body in TGI:
        await same(make, text, path, body)


@pytest.mark.parametrize(("path", "body"), [OPENAI[0], OPENAI[1], OPENAI[7], OPENAI[8]])
async def test_frames_of_a_template_are_what_the_encoder_writes(
    text: TextModel, path: str, body: dict[str, Any]
) -> None:
    """Continuous usage has no template: apart from its field the frames must be the same."""
    plain, counted = PushedEngine(text), PushedEngine(text)
    given = await over_messages(openai_app(plain), plain, path, body)
    always = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    encoded = await over_messages(openai_app(counted), counted, path, body | always)
    without = re.sub(rb',"usage":(null|\{.*?\}\})', b"", given)
    encoded = re.sub(rb',"usage":(null|\{.*?\}\})', b"", encoded)
    if "stream_options" not in body:
        encoded = b"\n\n".join(frame for frame in encoded.split(b"\n\n") if b'"choices":[]' not in frame)
    assert comparable(without) == comparable(encoded)


async def test_a_client_that_hangs_up_is_cancelled_at_once(engine: PushedEngine) -> None:
    async with served(openai_app(engine)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_bytes(*OPENAI[0]))
        await started(engine, 1)
        engine.push([70])
        await reader.readuntil(b"data: ")
        engine.push([71])
        writer.transport.abort()
        while not engine.cancelled:
            await asyncio.sleep(0.001)


async def test_an_error_in_the_middle_is_the_last_event(engine: PushedEngine) -> None:
    async with served(openai_app(engine)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_bytes(*OPENAI[0]))
        await started(engine, 1)
        engine.push([70])
        await reader.readuntil(b"data: ")
        engine.push([71])
        engine.push([], "error")
        frames = (b"data: " + unchunked_rest(await reader.read())).split(b"\n\n")
        writer.close()
    assert json.loads(frames[-3].removeprefix(b"data: "))["error"]["code"] == "engine_dead"
    assert frames[-2:] == [b"data: [DONE]", b""]


def unchunked_rest(data: bytes) -> bytes:
    """The events of what is left of a chunked body, which began inside of a chunk."""
    return re.sub(rb"\r\n[0-9a-f]+\r\n", b"", data).removesuffix(b"\r\n")


async def test_a_bug_in_one_stream_is_its_own_error_and_stops_its_sequence(engine: PushedEngine) -> None:
    async with served(openai_app(engine)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_bytes(*OPENAI[0]))
        await started(engine, 1)
        engine.push([70])
        await reader.readuntil(b"data: ")
        engine.push([70], index=0)
        engine.routes[0]._text._texts[7] = engine.routes[0]._text._texts[0]  # a choice that nobody asked for
        engine.push([70], index=7)
        answer = await reader.read()
        writer.close()
    assert b'"error"' in answer
    assert engine.cancelled == engine.routes


async def test_a_silent_stream_is_kept_alive(engine: PushedEngine) -> None:
    async with served(openai_app(engine, heartbeat_s=0.01)) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_bytes(*OPENAI[0]))
        await started(engine, 1)
        engine.push([70])
        await reader.readuntil(b": still here\n\n")
        engine.push([71], "length")
        assert b"data: [DONE]\n\n" in await reader.read()
        writer.close()


async def full_connection(engine: PushedEngine, port: int) -> tuple[socket.socket, int]:
    """A client that has stopped reading, and how many tokens it took until the server noticed."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", port))
    await loop.sock_sendall(client, request_bytes("/v1/completions", PLAIN | {"max_tokens": None}))
    await started(engine, 1)
    route = engine.routes[0]
    for count in range(1, 100_000):
        engine.push([70 + count % 20])
        while route._sink is None:
            await asyncio.sleep(0.001)
        if count % 50 == 0:
            await asyncio.sleep(0)
        if route._buffers:
            return client, count
    raise AssertionError("the connection was never full")


async def test_a_full_connection_costs_one_merged_event_and_loses_nothing(engine: PushedEngine) -> None:
    engine.info = type(engine.info)(**{**_facts(engine), "max_model_len": 200_000, "num_blocks": 10_000})
    async with served(openai_app(engine)) as port:
        client, count = await full_connection(engine, port)
        for more in range(count + 1, count + 2001):
            engine.push([70 + more % 20])
        assert len(engine.routes[0]._buffers) == 1
        engine.push([engine.text.eos_token_ids[0]], "stop")
        answer = b""
        while data := await asyncio.get_running_loop().sock_recv(client, 1 << 20):
            answer += data
        client.close()
    frames = unchunked(answer).split(b"\n\n")
    assert frames[-2] == b"data: [DONE]"
    said = "".join(json.loads(frame[6:])["choices"][0]["text"] for frame in frames[:-2])
    tokens = [70 + number % 20 for number in range(1, count + 2001)]
    assert said == engine.text.tokenizer.decode(tokens)
    assert not engine.cancelled


async def test_a_client_that_does_not_read_is_cut_off(engine: PushedEngine) -> None:
    engine.info = type(engine.info)(**{**_facts(engine), "max_model_len": 200_000, "num_blocks": 10_000})
    async with opened_port(openai_app(engine, send_timeout_s=0.05)) as port:
        client, _ = await full_connection(engine, number_of(port))
        assert port._server is not None
        connections = port._server.server_state.connections
        assert len(connections) == 1
        async with asyncio.timeout(10):
            while connections or not engine.cancelled:  # what it did not read does not keep a closing connection open
                await asyncio.sleep(0.001)
        client.close()


def _facts(engine: PushedEngine) -> dict[str, Any]:
    return {name: getattr(engine.info, name) for name in engine.info.__struct_fields__}


async def test_tgis_head_does_not_hold_up_the_engine(text: TextModel) -> None:
    engine = PushedEngine(text)
    settings = ServeSettings()
    app = make_tgi_app(make_app(engine, settings).state.gateway, resolve_tgi(TgiConfig(), settings))
    num_asked: list[int] = []

    async def receive() -> Message:
        if num_received.pop(0):
            await asyncio.Event().wait()
        return {"type": "http.request", "body": b'{"inputs": "hi"}'}

    async def send(message: Message) -> None:
        num_asked.append(len(engine.routes))
        engine.push([engine.text.eos_token_ids[0]], "stop")

    num_received = [0, 1]
    scope: Scope = {
        "type": "http", "method": "POST", "path": "/generate_stream", "raw_path": b"/generate_stream",
        "query_string": b"", "headers": [(b"content-type", b"application/json")], "http_version": "1.1",
        "scheme": "http",
    }  # fmt: skip
    await asyncio.wait_for(app(scope, receive, send), 20)
    assert num_asked[0] == 1


@pytest.mark.parametrize(("path", "body"), [OPENAI[0], OPENAI[7]])
async def test_the_head_goes_with_the_first_event(
    engine: PushedEngine, monkeypatch: pytest.MonkeyPatch, path: str, body: dict[str, Any]
) -> None:
    sent = sent_by_sockets(monkeypatch)
    async with served(openai_app(engine)) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_bytes(path, body))
        await started(engine, 1)
        assert not any(data.startswith(b"HTTP/1.1") for data in sent)
        engine.push([70])
        await eventually(lambda: sent[-1].startswith(b"HTTP/1.1 200") and b'data: {"id":"' in sent[-1])
        writer.transport.abort()
        await eventually(lambda: bool(engine.cancelled))


async def test_the_head_goes_alone_when_there_is_no_event_for_long(
    engine: PushedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = sent_by_sockets(monkeypatch)
    async with served(openai_app(engine, first_event_s=0.02)) as port:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_bytes(*OPENAI[0]))
        await eventually(lambda: sent[-1].startswith(b"HTTP/1.1 200") and sent[-1].endswith(b"\r\n\r\n"))
        assert b"data:" not in sent[-1]
        writer.transport.abort()
        await eventually(lambda: bool(engine.cancelled))

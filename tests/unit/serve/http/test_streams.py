"""Streams: clients that leave, clients that do not read, silence, and errors in the middle. Driven as raw ASGI."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette

from millpond.api.request import ErrorInfo
from millpond.base.errors import ContextLengthError, EngineDeadError, QueueFullError
from millpond.serve.http.app import make_app
from millpond.serve.settings import ServeSettings
from tests.support.scripted_engine import ScriptedEngine

CHAT = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
COMPLETION = {"prompt": "hi", "stream": True}
ENDPOINTS = [("/v1/chat/completions", CHAT), ("/v1/completions", COMPLETION)]


class Wire:
    """A client on a raw ASGI connection: it can hang up, and it can stop reading."""

    def __init__(self, path: str, body: dict[str, Any]) -> None:
        self.scope: dict[str, Any] = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "POST",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "scheme": "http",
            "headers": [(b"host", b"localhost"), (b"content-type", b"application/json")],
        }
        self.status = 0
        self.data = b""
        self.gone = asyncio.Event()
        self.reads = asyncio.Event()
        self.reads.set()
        self.got = asyncio.Event()
        self._body: bytes | None = json.dumps(body).encode()

    async def receive(self) -> dict[str, Any]:
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: dict[str, Any]) -> None:
        await self.reads.wait()
        if message["type"] == "http.response.start":
            self.status = message["status"]
        self.data += message.get("body", b"")
        if self.data:
            self.got.set()

    def run(self, app: Starlette) -> asyncio.Task[None]:
        return asyncio.create_task(app(self.scope, self.receive, self.send))


def events(data: bytes) -> list[Any]:
    """The JSON of every event before [DONE], which must be the last."""
    lines = [line for line in data.decode().split("\n\n") if line and not line.startswith(":")]
    assert lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


@pytest.mark.parametrize(("path", "body"), ENDPOINTS)
async def test_a_client_that_leaves_a_stream_frees_the_engine_at_once(
    app: Starlette, engine: ScriptedEngine, path: str, body: dict[str, Any]
) -> None:
    engine.stop_at = 3
    wire = Wire(path, body)
    task = wire.run(app)
    await wire.got.wait()
    assert engine.closed == []
    wire.gone.set()
    await task
    assert len(engine.closed) == 1


@pytest.mark.parametrize(("path", "body"), ENDPOINTS)
async def test_a_client_that_leaves_before_the_first_token_frees_the_engine(
    app: Starlette, engine: ScriptedEngine, path: str, body: dict[str, Any]
) -> None:
    engine.stop_at = 0
    wire = Wire(path, body)
    task = wire.run(app)
    while not engine.requests:
        await asyncio.sleep(0)
    wire.gone.set()
    await task
    assert len(engine.closed) == 1


@pytest.mark.parametrize(("path", "body"), ENDPOINTS)
async def test_a_client_that_leaves_a_whole_reply_frees_the_engine(
    app: Starlette, engine: ScriptedEngine, path: str, body: dict[str, Any]
) -> None:
    engine.stop_at = 3
    wire = Wire(path, body | {"stream": False})
    task = wire.run(app)
    while not engine.requests:
        await asyncio.sleep(0)
    wire.gone.set()
    await task
    assert len(engine.closed) == 1
    assert wire.status == 499


async def test_all_prompts_of_a_client_that_leaves_are_cancelled(app: Starlette, engine: ScriptedEngine) -> None:
    engine.stop_at = 2
    wire = Wire("/v1/completions", {"prompt": ["a", "b", "c"], "stream": True})
    task = wire.run(app)
    await wire.got.wait()
    wire.gone.set()
    await task
    assert len(engine.closed) == 3


async def test_a_client_that_does_not_read_is_cut_off(engine: ScriptedEngine) -> None:
    app = make_app(engine, ServeSettings(send_timeout_s=0.01))
    engine.stop_at = 3
    wire = Wire(*ENDPOINTS[0])
    task = wire.run(app)
    await wire.got.wait()
    wire.reads.clear()
    engine.go_on.set()
    await task
    assert len(engine.closed) == 1
    assert b"[DONE]" not in wire.data


async def test_a_silent_stream_is_kept_alive(engine: ScriptedEngine) -> None:
    app = make_app(engine, ServeSettings(heartbeat_s=0.01))
    engine.stop_at = 3
    wire = Wire(*ENDPOINTS[0])
    task = wire.run(app)
    while b": still here\n\n" not in wire.data:
        await asyncio.sleep(0.005)
    engine.go_on.set()
    await task
    text = "".join(event["choices"][0]["delta"].get("content", "") for event in events(wire.data))
    assert text == engine.answers[0]


async def test_a_stream_that_waits_for_its_first_token_begins_after_a_while(engine: ScriptedEngine) -> None:
    app = make_app(engine, ServeSettings(first_event_s=0.01))
    engine.stop_at = 0
    wire = Wire(*ENDPOINTS[0])
    task = wire.run(app)
    while not wire.status:
        await asyncio.sleep(0.005)
    engine.go_on.set()
    await task
    assert wire.status == 200
    assert events(wire.data)[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(("path", "body"), ENDPOINTS)
async def test_an_error_in_the_middle_is_the_last_event(
    http: httpx2.AsyncClient, engine: ScriptedEngine, path: str, body: dict[str, Any]
) -> None:
    engine.stop_at = 3
    engine.failure = ErrorInfo("engine_dead", "The engine process ended.")
    response = await http.post(path, json=body)
    assert response.status_code == 200
    got = events(response.content)
    assert got[-1]["error"] == {
        "message": "The engine process ended.",
        "type": "overloaded_error",
        "param": None,
        "code": "engine_dead",
    }
    assert len(got) > 1


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(
    ("error", "status"),
    [("engine_dead", 503), ("deadline_exceeded", 504), ("cancelled", 503), ("internal_error", 500)],
)
async def test_an_error_before_the_first_token_has_its_own_status(
    http: httpx2.AsyncClient, engine: ScriptedEngine, stream: bool, error: str, status: int
) -> None:
    engine.stop_at = 0
    engine.failure = ErrorInfo(error, "It went wrong.")
    response = await http.post("/v1/completions", json={"prompt": "a", "stream": stream})
    assert response.status_code == status
    assert response.json()["error"]["code"] == error
    assert ("retry-after" in response.headers) == (status == 503)
    assert (response.headers.get("x-should-retry") == "false") == (status == 504)


@pytest.mark.parametrize("stream", [True, False])
async def test_a_full_queue_is_a_429_that_says_when(
    http: httpx2.AsyncClient, engine: ScriptedEngine, stream: bool
) -> None:
    engine.refusal = QueueFullError("16 sequences wait.", retry_after_s=2.3, fix="Try again later.")
    response = await http.post("/v1/completions", json={"prompt": "a", "stream": stream})
    assert response.status_code == 429
    assert response.headers["retry-after"] == "3"
    assert response.json()["error"]["type"] == "rate_limit_error"


async def test_too_many_open_requests_are_a_429(engine: ScriptedEngine) -> None:
    app = make_app(engine, ServeSettings(max_open_requests=1))
    engine.stop_at = 1
    first = Wire(*ENDPOINTS[0])
    task = first.run(app)
    await first.got.wait()
    second = Wire(*ENDPOINTS[0])
    await second.run(app)
    assert second.status == 429
    engine.go_on.set()
    await task
    third = Wire(*ENDPOINTS[0])
    await third.run(app)
    assert third.status == 200


async def test_a_body_that_does_not_come_is_a_408(engine: ScriptedEngine) -> None:
    app = make_app(engine, ServeSettings(body_timeout_s=0.01))
    wire = Wire(*ENDPOINTS[0])
    wire._body = None
    await wire.run(app)
    assert wire.status == 408


async def test_a_dead_engine_is_a_503(http: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    engine.refusal = EngineDeadError("The engine is shutting down.")
    response = await http.post("/v1/completions", json={"prompt": "a"})
    assert response.status_code == 503
    assert int(response.headers["retry-after"]) > 0


async def test_a_prompt_that_does_not_fit_has_openais_code(http: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    response = await http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "mill " * 600}]})
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["code"], error["param"]) == (ContextLengthError.code, "messages")
    assert engine.requests == []


async def test_streams_feed_the_metrics(app: Starlette, http: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    await http.post("/v1/completions", json={"prompt": "a", "n": 2, "stream": True, "max_tokens": 4})
    metrics = app.state.gateway.metrics
    assert metrics.first_token.count == 1
    assert metrics.inter_token.count == 2 * 3
    assert metrics.queue.count == 2
    assert metrics.output_tokens.value() == 8
    assert metrics.finished.value("length") == 2
    assert metrics.duration.count == 1


async def test_a_cancelled_stream_is_counted_as_cancelled(app: Starlette, engine: ScriptedEngine) -> None:
    engine.stop_at = 3
    wire = Wire(*ENDPOINTS[0])
    task = wire.run(app)
    await wire.got.wait()
    wire.gone.set()
    await task
    assert app.state.gateway.metrics.finished.value("cancelled") == 1
    assert app.state.gateway.metrics.duration.count == 0

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from millpond.base.errors import ConfigError
from millpond.cli.bench.load import Arrival, LoadPlan, run_load
from millpond.cli.bench.measure import make_report
from millpond.cli.bench.remote import HttpError, RemoteOptions, connect, parse_base
from millpond.cli.main import main

Handler = Callable[[Request], Awaitable[Response]]
MODELS = {"object": "list", "data": [{"id": "tiny", "object": "model"}]}


def sse(*events: dict[str, Any]) -> Response:
    async def body() -> AsyncIterator[bytes]:
        for event in events:
            data = f"data: {json.dumps(event)}\n\n".encode()
            yield data[:7]  # events are cut anywhere on their way
            await asyncio.sleep(0)
            yield data[7:]
        yield b"data: [DONE]\n\n"

    return StreamingResponse(body(), media_type="text/event-stream")


@asynccontextmanager
async def server(completions: Handler, models: dict[str, Any] = MODELS) -> AsyncIterator[str]:
    async def list_models(_: Request) -> Response:
        return JSONResponse(models)

    routes = [Route("/v1/models", list_models)]
    routes += [Route(f"/v1/{path}", completions, methods=["POST"]) for path in ("completions", "chat/completions")]
    config = uvicorn.Config(Starlette(routes=routes), port=0, log_level="error", loop="asyncio", lifespan="off")
    running = uvicorn.Server(config)
    task = asyncio.create_task(running.serve())
    while not running.started:
        await asyncio.sleep(0.005)
    try:
        yield f"http://127.0.0.1:{running.servers[0].sockets[0].getsockname()[1]}"
    finally:
        running.should_exit = True
        await task


async def collect(url: str, options: RemoteOptions | None = None) -> list[Arrival]:
    target = await connect(url, options or RemoteOptions())
    return [arrival async for arrival in target.stream([0, 1, 2], 5)]


async def test_tokens_are_counted_by_events_and_corrected_by_usage() -> None:
    async def answer(_: Request) -> Response:
        usage = {"prompt_tokens": 3, "completion_tokens": 5}
        return sse(*[{"choices": [{"text": "a"}]}] * 2, {"choices": [], "usage": usage})

    async with server(answer) as url:
        assert await collect(url) == [Arrival(1), Arrival(1), Arrival(0, 3, 5)]


async def test_the_request_is_what_such_servers_take() -> None:
    sent: list[tuple[str, str | None, dict[str, Any]]] = []

    async def answer(request: Request) -> Response:
        sent.append((request.url.path, request.headers.get("authorization"), await request.json()))
        return sse({"choices": [{"delta": {"content": "a"}}]})

    async with server(answer) as url:
        await collect(url, RemoteOptions(chat=True, api_key="secret", ignore_eos=True))
    ((path, key, body),) = sent
    assert (path, key) == ("/v1/chat/completions", "Bearer secret")
    assert body.pop("messages") == [{"role": "user", "content": "time year people"}]
    assert body == {
        "model": "tiny",
        "max_tokens": 5,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "ignore_eos": True,
    }


async def test_a_refusal_says_what_the_server_said() -> None:
    async def answer(_: Request) -> Response:
        return JSONResponse({"error": {"message": "no such model"}}, status_code=404)

    async with server(answer) as url:
        with pytest.raises(HttpError, match=r"answered 404.*no such model"):
            await collect(url)


async def test_an_error_in_the_stream_is_an_error() -> None:
    async def answer(_: Request) -> Response:
        return sse({"choices": [{"text": "a"}]}, {"error": {"message": "the engine died"}})

    async with server(answer) as url:
        with pytest.raises(HttpError, match="the engine died"):
            await collect(url)


async def test_a_server_without_models_needs_a_name() -> None:
    async def answer(_: Request) -> Response:
        return sse({"choices": [{"text": "a"}]})

    async with server(answer, {"data": []}) as url:
        with pytest.raises(HttpError, match="--model-name"):
            await collect(url)
        assert await collect(url, RemoteOptions(model="given")) == [Arrival(1)]


async def test_a_whole_run_is_reported() -> None:
    async def answer(_: Request) -> Response:
        usage = {"prompt_tokens": 7, "completion_tokens": 3}
        return sse(*[{"choices": [{"text": "a"}]}] * 3, {"choices": [], "usage": usage})

    async with server(answer) as url:
        target = await connect(url, RemoteOptions())
        traces = await run_load(target, LoadPlan(requests=6, concurrency=3, prompt_tokens=4, output_tokens=3))
    report = make_report(target.name, 3, traces)
    assert (report.failed, report.prompt_tokens, report.output_tokens) == (0, 42, 18)


async def test_the_command_measures_a_url(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    keys = set()

    async def answer(request: Request) -> Response:
        keys.add(request.headers["authorization"])
        return sse(*[{"choices": [{"text": "a"}]}] * 3, {"usage": {"prompt_tokens": 7, "completion_tokens": 3}})

    key = tmp_path / "key"
    key.write_text("secret\n")
    async with server(answer) as url:
        flags = ["--requests", "3", "--concurrency", "2", "--key-file", str(key), "--json"]
        assert await asyncio.to_thread(main, ["bench", url, *flags]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["requests"], report["output_tokens"], report["target"]) == (3, 9, f"tiny at {url}")
    assert keys == {"Bearer secret"}


async def test_a_server_that_refuses_all_is_an_error_before_the_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    async def answer(_: Request) -> Response:
        return JSONResponse({"error": {"message": "loading"}}, status_code=503)

    async with server(answer) as url:
        assert await asyncio.to_thread(main, ["bench", url]) == 1
    assert "failed the first request" in capsys.readouterr().err


def test_a_key_file_that_is_not_there_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "http://127.0.0.1:1", "--key-file", "no-such-file"]) == 1
    assert capsys.readouterr().err.startswith("Error: The key file no-such-file cannot be read")


async def test_nobody_at_the_address_is_one_sentence() -> None:
    listener = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    listener.close()
    await listener.wait_closed()
    with pytest.raises(HttpError, match=f"127.0.0.1:{port} does not answer"):
        await connect(f"http://127.0.0.1:{port}", RemoteOptions())


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("http://host:1", "/v1"),
        ("http://host/", "/v1"),
        ("https://host/v1/", "/v1"),
        ("https://host/api/v1/chat/completions", "/api/v1"),
        ("https://host/v1/completions", "/v1"),
    ],
)
def test_the_api_stands_behind_the_path(url: str, path: str) -> None:
    assert parse_base(url).path == path


def test_other_addresses_are_refused() -> None:
    with pytest.raises(ConfigError, match="is not an HTTP address"):
        parse_base("ftp://host")

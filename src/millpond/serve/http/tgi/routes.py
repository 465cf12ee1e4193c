"""The small routes: /info, /health and its names, /metrics, /v1/models, /tokenize, /chat_tokenize and /docs."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response

from millpond.api.request import Request, SamplingParams
from millpond.base.errors import MillpondError
from millpond.serve.gateway import Engine
from millpond.serve.generation import Generation
from millpond.serve.http.body import decode_body
from millpond.serve.http.stream import until_gone
from millpond.serve.http.tgi.chat_fields import ChatBody
from millpond.serve.http.tgi.chat_request import rendered
from millpond.serve.http.tgi.errors import TgiError, validation
from millpond.serve.http.tgi.fields import GenerateBody, parameters_of
from millpond.serve.http.tgi.replies import ChatTokens, Info, ModelCard, ModelList, SimpleToken
from millpond.serve.http.tgi.server import TgiCall, TgiServer
from millpond.serve.prometheus import CONTENT_TYPE

T = TypeVar("T")

_PROBE_S = 30.0
_DOCS = b"""<!doctype html><meta charset="utf-8"><title>API</title>
<p>This API as an OpenAPI document: <a href="/api-doc/openapi.json">/api-doc/openapi.json</a>."""


class ServerRoutes:
    """The routes that only read the server's state; none of them needs a key."""

    def __init__(self, server: TgiServer) -> None:
        self._server = server
        self._probing = asyncio.Lock()

    async def info(self, request: HttpRequest) -> Response:
        """Answers GET /info."""
        return _json(self._info(self._server.gateway.ready_engine()))

    async def models(self, request: HttpRequest) -> Response:
        """Answers GET /v1/models."""
        name = self._server.gateway.ready_engine().info.model
        return _json(ModelList("list", [ModelCard(name, "model", 0, name)]))

    async def health(self, request: HttpRequest) -> Response:
        """Answers 200 while the engine works; after a failed generation it has to give a token first."""
        server = self._server
        if server.gateway.status != "ready":
            raise TgiError("healthcheck", "unhealthy")
        async with self._probing:
            if not server.is_healthy and not await self._probe():
                raise TgiError("healthcheck", "unhealthy")
        return Response()

    async def metrics(self, request: HttpRequest) -> Response:
        """Answers with the Prometheus page."""
        engine = self._server.gateway.engine
        stats = None if engine is None else engine.stats
        page = self._server.metrics.page(stats, 0 if engine is None else engine.info.block_size)
        return Response(page, headers={"Content-Type": CONTENT_TYPE})

    async def docs(self, request: HttpRequest) -> Response:
        """Answers with a page that leads to the OpenAPI document."""
        return Response(_DOCS, media_type="text/html")

    def _info(self, engine: Engine) -> Info:
        settings = self._server.settings
        limits = settings.limits(engine.info)
        return Info(
            model_id=engine.info.model,
            model_sha=None,
            model_pipeline_tag="text-generation",
            max_concurrent_requests=settings.max_concurrent_requests,
            max_best_of=settings.max_best_of,
            max_stop_sequences=settings.max_stop_sequences,
            max_input_tokens=limits.max_input_tokens,
            max_total_tokens=limits.max_total_tokens,
            validation_workers=2,
            max_client_batch_size=settings.max_client_batch_size,
            router="text-generation-router",
            version=self._server.gateway.version,
            sha=None,
            docker_label=None,
        )

    async def _probe(self) -> bool:
        server = self._server
        engine = server.gateway.ready_engine()
        request = Request("tgi-health", [0], SamplingParams(temperature=0.0, max_tokens=1), deadline_s=_PROBE_S)
        generation = Generation(engine, server.gateway.metrics, [request], 0.0)
        events = generation.events()
        try:
            async for _ in events:
                pass
        except MillpondError:
            return False
        finally:
            await events.aclose()
            await generation.aclose()
        server.is_healthy = True
        return True


async def answer_tokenize(call: TgiCall) -> Response:
    """Answers POST /tokenize."""
    server = call.server
    body = await decode_body(call.http, server.gateway, GenerateBody, {}, server.settings.max_body_bytes)
    if not body.inputs:
        raise validation("`inputs` cannot be empty")
    truncate = parameters_of(body).truncate
    tokens = await _in_thread(call, lambda: simple_tokens(call.engine, body.inputs, body.add_special_tokens))
    return _json(tokens[-truncate:] if truncate else tokens)


async def answer_chat_tokenize(call: TgiCall) -> Response:
    """Answers POST /chat_tokenize."""
    server = call.server
    body = await decode_body(call.http, server.gateway, ChatBody, {}, server.settings.max_body_bytes)

    def work() -> ChatTokens:
        text = rendered(call, body).text
        return ChatTokens(simple_tokens(call.engine, text, False), text)

    return _json(await _in_thread(call, work))


async def _in_thread(call: TgiCall, work: Callable[[], T]) -> T:
    return await until_gone(call.http.receive, call.server.gateway.in_thread(work))


def simple_tokens(engine: Engine, text: str, add_special_tokens: bool) -> list[SimpleToken]:
    """Returns the tokens of a text and the characters each covers; special ones that were added cover none."""
    tokenizer = engine.text.tokenizer
    tokenizer.encode(text, add_special_tokens)  # refuses what is no text
    encoding = tokenizer.raw.encode(text, add_special_tokens=add_special_tokens)
    return [
        SimpleToken(token_id, text[start:stop], start, stop)
        for token_id, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
    ]


def _json(value: object) -> Response:
    return Response(msgspec.json.encode(value), media_type="application/json")

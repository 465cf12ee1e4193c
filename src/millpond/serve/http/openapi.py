"""The OpenAPI 3.1 document at /openapi.json, made from the structs the routes decode and encode.

Nothing is described twice: types, ranges and descriptions come from the structs' annotations, statuses from the table
here. Third-party tools (schemathesis in our tests) drive the server with it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from millpond.serve.http.errors import ErrorReply
from millpond.serve.http.health import Health, Readiness
from millpond.serve.http.openai.chat_fields import ChatBody
from millpond.serve.http.openai.completions import CompletionBody
from millpond.serve.http.openai.replies import (
    ChatChunk,
    ChatReply,
    CompletionReply,
    ModelCard,
    ModelList,
)

_REF = "#/components/schemas/{name}"
_STRUCTS = (
    ChatBody, ChatReply, ChatChunk, CompletionBody, CompletionReply, ModelList, ModelCard, ErrorReply, Health, Readiness
)  # fmt: skip
_ERRORS = {
    "400": "The request can never succeed as it was sent.",
    "401": "No valid API key.",
    "403": "The Host header does not fit an address this server may be reached at.",
    "404": "The model does not exist.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The body is not application/json.",
    "429": "The queue is full; Retry-After says when to try again.",
    "503": "The server is loading, restarting or shutting down; Retry-After says when to try again.",
    "504": "The request ran out of its time.",
}


def make_document(version: str) -> dict[str, Any]:
    """Returns the document."""
    _, schemas = msgspec.json.schema_components(_STRUCTS, ref_template=_REF)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Millpond",
            "version": version,
            "description": "The OpenAI API, and what operators need.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{}, {"key": []}],
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "paths": {
            "/v1/chat/completions": {"post": _generate("Chat", "ChatBody", "ChatReply", "ChatChunk")},
            "/v1/completions": {
                "post": _generate("Completion", "CompletionBody", "CompletionReply", "CompletionReply")
            },
            "/v1/models": {"get": _read("listModels", "The served models.", "ModelList", ("401", "403", "503"))},
            "/v1/models/{id}": {
                "get": _read("getModel", "One model.", "ModelCard", ("401", "403", "404", "503"))
                | {"parameters": [{"name": "id", "in": "path", "required": True, "schema": {"type": "string"}}]}
            },
            "/health": {"get": _read("health", "The process lives.", "Health", ("403",))},
            "/ready": {"get": _ready()},
            "/metrics": {"get": _metrics()},
        },
    }


def _generate(name: str, body: str, reply: str, chunk: str) -> dict[str, Any]:
    return {
        "operationId": f"create{name}",
        "summary": f"{name}, whole or as a stream of server-sent events that ends with [DONE].",
        "requestBody": {"required": True, "content": _json(body)},
        "responses": {
            "200": {
                "description": "The answer. An error after the first event is an event itself: an error object.",
                "content": _json(reply) | {"text/event-stream": {"schema": {"type": "string"}, "x-event": _ref(chunk)}},
            },
            **_errors(tuple(_ERRORS)),
        },
    }


def _read(operation: str, text: str, reply: str, errors: tuple[str, ...]) -> dict[str, Any]:
    return {
        "operationId": operation,
        "summary": text,
        "responses": {"200": {"description": text, "content": _json(reply)}, **_errors(errors)},
    }


def _ready() -> dict[str, Any]:
    content = _json("Readiness")
    return {
        "operationId": "ready",
        "summary": "Whether requests are welcome.",
        "responses": {
            "200": {"description": "They are.", "content": content},
            "503": {"description": "Not now.", "content": content},
            **_errors(("403",)),
        },
    }


def _metrics() -> dict[str, Any]:
    content = {"text/plain": {"schema": {"type": "string"}}}
    return {
        "operationId": "metrics",
        "summary": "Prometheus metrics.",
        "responses": {"200": {"description": "The text format.", "content": content}, **_errors(("403",))},
    }


def _errors(statuses: tuple[str, ...]) -> dict[str, Any]:
    return {status: {"description": _ERRORS[status], "content": _json("ErrorReply")} for status in statuses}


def _json(name: str) -> dict[str, Any]:
    return {"application/json": {"schema": _ref(name)}}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": _REF.format(name=name)}


def make_document_endpoint(version: str) -> Callable[[Request], Awaitable[Response]]:
    """Returns the endpoint of /openapi.json; the document is made when it is first asked for."""

    @cache
    def content() -> bytes:
        return msgspec.json.encode(make_document(version))

    async def endpoint(request: Request) -> Response:
        return Response(content(), media_type="application/json")

    return endpoint

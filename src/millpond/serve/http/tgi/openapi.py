"""The OpenAPI document of the TGI port, made from the structs its routes decode and encode."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import cache
from typing import Any

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from millpond.serve.http.tgi.chat_fields import ChatBody, CompletionBody
from millpond.serve.http.tgi.chat_replies import ChatChunk, ChatReply, CompletionReply
from millpond.serve.http.tgi.errors import ErrorReply
from millpond.serve.http.tgi.fields import CompatBody, GenerateBody, VertexInstance
from millpond.serve.http.tgi.replies import (
    ChatTokens,
    GenerateReply,
    Info,
    ModelList,
    SimpleToken,
    StreamReply,
    VertexReply,
)

_REF = "#/components/schemas/{name}"
_STRUCTS = (
    ChatBody, ChatChunk, ChatReply, ChatTokens, CompatBody, CompletionBody, CompletionReply, ErrorReply, GenerateBody,
    GenerateReply, Info, ModelList, SimpleToken, StreamReply, VertexInstance, VertexReply,
)  # fmt: skip
_PLAIN = {
    "400": "The body is not JSON.",
    "401": "No valid key.",
    "403": "The Host header does not fit an address this server may be reached at.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "The body is not application/json.",
}
_ERRORS = {
    "422": "The request can never succeed as it was sent. Wrong types are told in plain text.",
    "424": "The generation failed.",
    "429": "There is no place for the request now.",
    "500": "The answer could not be made.",
    "503": "The server is loading, restarting or shutting down.",
}


def make_document(version: str) -> dict[str, Any]:
    """Returns the document."""
    _, schemas = msgspec.json.schema_components(_STRUCTS, ref_template=_REF)
    generated = _object("GenerateReply")
    stream = _object("StreamReply")
    tokens = {"type": "array", "items": _object("SimpleToken")}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Text Generation Inference",
            "version": version,
            "description": "TGI's API, as Millpond serves it.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{}, {"key": []}],
        "components": {"schemas": schemas, "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}},
        "paths": {
            "/": {"post": _post("compat_generate", "CompatBody", {"type": "array", "items": generated}, stream)},
            "/generate": {"post": _post("generate", "GenerateBody", generated)},
            "/generate_stream": {"post": _post("generate_stream", "GenerateBody", None, stream)},
            "/v1/chat/completions": {
                "post": _post("chat_completions", "ChatBody", _object("ChatReply"), _object("ChatChunk"))
            },
            "/v1/completions": {
                "post": _post("completions", "CompletionBody", _object("CompletionReply"), _object("CompletionReply"))
            },
            "/tokenize": {"post": _post("tokenize", "GenerateBody", tokens)},
            "/chat_tokenize": {"post": _post("chat_tokenize", "ChatBody", _object("ChatTokens"))},
            "/vertex": {"post": _vertex()},
            "/info": {"get": _get("get_model_info", _object("Info"))},
            "/v1/models": {"get": _get("openai_get_model_info", _object("ModelList"))},
            "/health": {"get": _get("health", None)},
            "/metrics": {"get": _get("metrics", None)},
        },
    }


def _post(
    operation: str, body: str, reply: dict[str, Any] | None, stream: dict[str, Any] | None = None
) -> dict[str, Any]:
    content: dict[str, Any] = {} if reply is None else {"application/json": {"schema": reply}}
    if stream is not None:
        content["text/event-stream"] = {"schema": {"type": "string"}, "x-event": stream}
    return {
        "operationId": operation,
        "requestBody": {"required": True, "content": {"application/json": {"schema": _object(body)}}},
        "responses": {"200": {"description": "The answer.", "content": content}, **_refusals()},
    }


def _vertex() -> dict[str, Any]:
    document = _post("vertex_compatibility", "VertexInstance", _object("VertexReply"))
    instances = {"type": "array", "items": _object("VertexInstance")}
    body = {"type": "object", "required": ["instances"], "properties": {"instances": instances}}
    document["requestBody"]["content"]["application/json"]["schema"] = body
    return document


def _get(operation: str, reply: dict[str, Any] | None) -> dict[str, Any]:
    answer: dict[str, Any] = {"description": "The answer."}
    if reply is not None:
        answer["content"] = {"application/json": {"schema": reply}}
    unwell = {"description": _ERRORS["503"], "content": {"application/json": {"schema": _object("ErrorReply")}}}
    return {
        "operationId": operation,
        "responses": {"200": answer, "403": {"description": _PLAIN["403"]}, "503": unwell},
    }


def _refusals() -> dict[str, Any]:
    told = {"application/json": {"schema": _object("ErrorReply")}}
    either = told | {"text/plain": {"schema": {"type": "string"}}}
    return {
        **{status: {"description": text} for status, text in _PLAIN.items()},
        **{
            status: {"description": text, "content": either if status == "422" else told}
            for status, text in _ERRORS.items()
        },
    }


def _object(name: str) -> dict[str, str]:
    return {"$ref": _REF.format(name=name)}


def make_document_endpoint(version: str) -> Callable[[Request], Awaitable[Response]]:
    """Returns the endpoint of the document, which is made when it is first asked for."""

    @cache
    def content() -> bytes:
        return msgspec.json.encode(make_document(version))

    async def endpoint(request: Request) -> Response:
        return Response(content(), media_type="application/json")

    return endpoint

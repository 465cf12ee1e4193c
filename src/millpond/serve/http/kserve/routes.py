"""The routes beside inference: what each answers, as functions from a server and a target to an exchange.

Called by `router`, which knows the paths. A route is either answered at once or, where it waits for the repository, by
a coroutine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from millpond.serve.http.kserve.errors import error_body
from millpond.serve.http.kserve.exchange import JSON, TEXT_UTF8, Exchange
from millpond.serve.http.kserve.infer_plan import InferPlans
from millpond.serve.http.kserve.json_body import mapping, members, read_json, write_json
from millpond.serve.kserve.parameters import ClientFault, flag
from millpond.serve.kserve.server import KServe
from millpond.serve.servables.errors import ServableError


@dataclass(frozen=True, slots=True)
class Target:
    """What a path names beside its route."""

    model: str = ""
    version: int | None = None
    name: str = ""  # of a region or a repository
    kind: str = ""  # "system" or "cuda"; of a document, its file's name
    plans: InferPlans = field(default_factory=InferPlans, compare=False)


Route = Callable[[KServe, Exchange, Target], None]


def send(exchange: Exchange, document: object) -> None:
    """Answers with a document."""
    exchange.respond(200, [write_json(document)], JSON)


def live(server: KServe, exchange: Exchange, target: Target) -> None:
    _healthy(server, exchange, {"live": True})


def ready(server: KServe, exchange: Exchange, target: Target) -> None:
    if server.is_ready():
        _healthy(server, exchange, {"ready": True})
    else:
        is_strict = server.settings.is_strict
        exchange.respond(503 if is_strict else 400, [error_body("Server not ready")] if is_strict else [])


def model_ready(server: KServe, exchange: Exchange, target: Target) -> None:
    if server.is_model_ready(target.model, target.version):
        _healthy(server, exchange, {"name": target.model, "ready": True})
        return
    is_known = target.model in server.servables.names()
    status = 400 if not server.settings.is_strict else 503 if is_known else 404
    exchange.respond(status, [error_body("Model version not ready")])


def metadata(server: KServe, exchange: Exchange, target: Target) -> None:
    send(exchange, server.metadata())


def model_metadata(server: KServe, exchange: Exchange, target: Target) -> None:
    send(exchange, server.model_metadata(target.model, target.version))


def model_config(server: KServe, exchange: Exchange, target: Target) -> None:
    send(exchange, server.model_config(target.model, target.version))


def docs_of_all(server: KServe, exchange: Exchange, target: Target) -> None:
    send(exchange, server.openapi())


def docs_of_model(server: KServe, exchange: Exchange, target: Target) -> None:
    if target.kind == "servable.proto":
        exchange.respond(200, [server.proto(target.model, target.version).encode()], TEXT_UTF8)
    elif target.kind:
        send(exchange, server.openapi(target.model, target.version))
    else:
        send(exchange, server.summary(target.model, target.version))


def statistics(server: KServe, exchange: Exchange, target: Target) -> None:
    send(exchange, server.statistics(target.model or None, target.version))


def trace(server: KServe, exchange: Exchange, target: Target) -> None:
    if target.model:
        server.check_model(target.model)
    if exchange.request.method == "POST":
        changes = _body(exchange)
        if not isinstance(changes.get("trace_level", []), list | None):
            raise ClientFault("attempt to access JSON non-array as array")
        server.tracing.update(target.model, changes)
    send(exchange, server.tracing.document(target.model))


def logs(server: KServe, exchange: Exchange, target: Target) -> None:
    if exchange.request.method == "POST":
        server.logging.update(_body(exchange))
    send(exchange, server.logging.document())


async def index(server: KServe, exchange: Exchange, target: Target) -> None:
    if server.settings.is_strict:
        _check_repository(target)
    body = read_json(exchange.request.body) if exchange.request.body else {}
    is_ready = body.get("ready", False) if isinstance(body, dict) else False
    if not isinstance(is_ready, bool):
        raise ClientFault("attempt to access JSON non-boolean as boolean")
    send(exchange, await server.index(is_ready=is_ready))


async def load(server: KServe, exchange: Exchange, target: Target) -> None:
    _check_repository(target)
    parameters = members(_body(exchange).get("parameters", {}))
    for value in parameters.values():
        if not isinstance(value, str):
            raise ClientFault("attempt to access JSON non-string as string")
    await server.load(target.model, parameters)
    exchange.respond(200, content_type=JSON)


async def unload(server: KServe, exchange: Exchange, target: Target) -> None:
    _check_repository(target)
    dependents = False
    try:
        parameters = mapping(_body(exchange).get("parameters", {}), "parameters")
        dependents = flag("unload_dependents", parameters.get("unload_dependents", False))
    except ClientFault:  # Triton unloads without them
        if server.settings.is_strict:
            raise
    await server.unload(target.model, dependents=dependents)
    exchange.respond(200, content_type=JSON)


def region_status(server: KServe, exchange: Exchange, target: Target) -> None:
    if target.kind == "cuda":
        if target.name:
            raise ServableError("not_found", f"Unable to find cuda shared memory region: '{target.name}'")
        send(exchange, [])
    else:
        send(exchange, server.regions.status(target.name or None))


def region_register(server: KServe, exchange: Exchange, target: Target) -> None:
    if not target.name:
        raise ServableError(
            "invalid_argument", f"'region name' is necessary to register {target.kind} shared memory region"
        )
    body = _body(exchange)
    fields = ("raw_handle", "device_id", "byte_size") if target.kind == "cuda" else ("key", "byte_size")
    for name in fields:
        if name not in body:
            raise ServableError("invalid_argument", f"Shared memory register request has no '{name}' field")
    if target.kind == "cuda":
        raise ServableError(
            "invalid_argument",
            f"failed to register CUDA shared memory region: '{target.name}', GPUs not supported",
        )
    server.regions.register(target.name, _key(body), _size(body, "offset"), _size(body, "byte_size"))
    exchange.respond(200, content_type=JSON)


def region_unregister(server: KServe, exchange: Exchange, target: Target) -> None:
    if target.kind == "system":
        server.regions.unregister(target.name or None)
    exchange.respond(200, content_type=JSON)


def _healthy(server: KServe, exchange: Exchange, document: object) -> None:
    """Triton answers with nothing; the protocol's own text, and KServe's client, want JSON."""
    if server.settings.is_strict:
        send(exchange, document)
    else:
        exchange.respond(200)


def _size(body: Mapping[str, Any], name: str) -> int:
    size = body.get(name, 0)
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size < 1 << 63:
        raise ClientFault("attempt to access JSON non-unsigned-integer as unsigned-integer")
    return size


def _key(body: Mapping[str, Any]) -> str:
    key = body["key"]
    if not isinstance(key, str):
        raise ClientFault("attempt to access JSON non-string as string")
    return key


def _body(exchange: Exchange) -> Mapping[str, Any]:
    body = exchange.request.body
    return mapping(read_json(body), "request") if body else {}


def _check_repository(target: Target) -> None:
    if target.name:
        raise ServableError("unsupported", "'repository_name' specification is not supported")

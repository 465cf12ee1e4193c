"""The jobs over HTTP: the verbs of `JobsClient` as routes, with an OpenAPI document.

Listens on the loopback unless told otherwise, and asks every caller for a token: whoever can submit a job can run
programs as this user, and so could any web page that a browser here has open. Owns the translation only. Called by
`millpond jobs serve`; imported when that runs.
"""

from __future__ import annotations

import functools
import hmac
import os
import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from millpond.api.deployment import DeploymentExistsError, DeploymentNotFoundError
from millpond.api.job import JobExistsError, JobNotFoundError, JobStatus, SpecError
from millpond.base.errors import MillpondError
from millpond.jobs.client import JobsClient
from millpond.jobs.looking import NodeStatus
from millpond.jobs.metrics import jobs_metrics
from millpond.jobs.spec_document import MAX_BYTES
from millpond.jobs.store import EventRecord, ModelVersionRecord

_PREFIX = "/api/v1"
MakeClient = Callable[[], JobsClient]


@dataclass(frozen=True, slots=True)
class Verb:
    """A route: what it answers with (None: text), what it takes from the query, what it does.

    Attributes:
        act: Gets the client and the request, or (`reads`) the client and the text of the body.
    """

    method: str
    path: str
    text: str
    answer: Any
    act: Callable[[Any, Any], Any]
    query: tuple[str, ...] = ()
    reads: bool = False


def _namespace(request: Request) -> str | None:
    return request.query_params.get("namespace")


def _get(client: JobsClient, request: Request) -> JobStatus:
    return client.get(request.path_params["name"], _namespace(request))


def _logs(client: JobsClient, request: Request) -> Iterator[bytes]:
    status, query = _get(client, request), request.query_params
    tail = query.get("tail")
    if tail is not None and not (tail.isascii() and tail.isdigit() and len(tail) < 10):
        raise SpecError("tail must be a whole number.", param="tail")
    replica = client.find_replica(status, query.get("instance"))
    return client.logs(status, replica, follow="follow" in query, tail=None if tail is None else int(tail))


def _metrics(client: JobsClient) -> Iterator[bytes]:
    return iter([jobs_metrics(client.jobs(), time.time()).encode()])


def _scale_job(client: JobsClient, request: Request) -> JobStatus:
    replicas, role = read_number(request, "replicas"), request.query_params.get("role")
    return client.scale(request.path_params["name"], replicas, role, _namespace(request))[0]


def read_number(request: Request, name: str) -> int:
    """A whole number of the query, which must be there.

    Raises:
        SpecError: It is not.
    """
    text = request.query_params.get(name, "")
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise SpecError(f"{name} must be a whole number.", param=name)
    return int(text)


VERBS = (
    Verb(
        "POST", "/jobs", "Submits the jobs of a YAML or JSON body, all or none.", list[JobStatus],
        lambda client, text: client.submit(text), reads=True,
    ),
    Verb(
        "GET", "/jobs", "Lists jobs, newest first.", list[JobStatus],
        lambda client, request: client.jobs(_namespace(request), with_deleted="deleted" in request.query_params),
        ("namespace", "deleted"),
    ),
    Verb("GET", "/jobs/{name}", "Shows a job, by name or uid.", JobStatus, _get, ("namespace",)),
    Verb(
        "DELETE", "/jobs/{name}", "Stops a job and deletes its logs; the record stays.", list[JobStatus],
        lambda client, request: client.delete([request.path_params["name"]], _namespace(request)), ("namespace",),
    ),
    Verb(
        "GET", "/jobs/{name}/events", "Lists what happened to a job.", list[EventRecord],
        lambda client, request: client.events(_get(client, request)), ("namespace",),
    ),
    Verb(
        "GET", "/jobs/{name}/explain", "Says why a job waits.", dict[str, Any],
        lambda client, request: _get(client, request).explanation, ("namespace",),
    ),
    Verb(
        "GET", "/jobs/{name}/logs", "Streams what an instance wrote; with `follow` until it has ended.", None,
        _logs, ("namespace", "instance", "tail", "follow"),
    ),
    Verb(
        "POST", "/jobs/{name}/suspend", "Stops a cron from making jobs.", JobStatus,
        lambda client, request: client.suspend(request.path_params["name"], _namespace(request)), ("namespace",),
    ),
    Verb(
        "POST", "/jobs/{name}/resume", "Lets a cron make jobs again.", JobStatus,
        lambda client, request: client.suspend(request.path_params["name"], _namespace(request), resume=True),
        ("namespace",),
    ),
    Verb(
        "POST", "/jobs/{name}/scale", "Gives a role another number of replicas; the job starts again with them.",
        JobStatus, _scale_job, ("namespace", "replicas", "role"),
    ),
    Verb("GET", "/queue", "Lists waiting jobs in the order of service.", list[JobStatus], lambda c, _: c.queue()),
    Verb("GET", "/nodes", "Lists machines and what is held of them.", list[NodeStatus], lambda c, _: c.nodes()),
    Verb("GET", "/metrics", "Counts jobs by kind and phase, for Prometheus.", None, lambda c, _: _metrics(c)),
    Verb(
        "GET", "/model-versions", "Lists versions of models that jobs left behind.", list[ModelVersionRecord],
        lambda client, _: client.model_versions(),
    ),
)  # fmt: skip


def make_app(make_client: MakeClient, token: str, more: Mapping[Verb, Callable[[], Any]] | None = None) -> Starlette:
    """Makes the application.

    Args:
        make_client: A new client for each request; it is closed after it.
        token: What callers must show as `Authorization: Bearer TOKEN`.
        more: Further verbs, and what makes the client of each.
    """
    makers: dict[Verb, Callable[[], Any]] = dict.fromkeys(VERBS, make_client) | dict(more or {})

    async def health(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def openapi(_request: Request) -> Response:
        return JSONResponse(make_document(tuple(makers)))

    routes = [Route("/health", health), Route("/openapi.json", openapi)]
    for verb, maker in makers.items():
        endpoint = functools.partial(_answer, verb, maker, token)
        routes.append(Route(_PREFIX + verb.path, endpoint, methods=[verb.method]))
    return Starlette(routes=routes)


def read_token(path: Path) -> str:
    """The token of a jobs directory; made when there is none. Only its owner can read it."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text(encoding="utf-8").strip()
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        token = secrets.token_urlsafe(32)
        file.write(token + "\n")
    return token


async def _answer(verb: Verb, make_client: Callable[[], Any], token: str, request: Request) -> Response:
    shown = request.headers.get("authorization", "")
    if not hmac.compare_digest(shown.encode(), f"Bearer {token}".encode()):
        error = {"code": "unauthorized", "message": "The token is missing or wrong.", "fix": "See `jobs serve`."}
        return JSONResponse({"error": error}, 401, headers={"WWW-Authenticate": "Bearer"})
    try:
        unknown = set(request.query_params) - set(verb.query)
        if unknown:
            raise SpecError(f"There is no parameter '{min(unknown)}'.", param=min(unknown))
        text = await _read_body(request) if verb.reads else ""
        return await run_in_threadpool(_act, verb, make_client, request, text)
    except MillpondError as error:
        return _error(error)


def _act(verb: Verb, make_client: Callable[[], Any], request: Request, text: str) -> Response:
    client = make_client()
    try:
        found: Any = verb.act(client, text if verb.reads else request)
    except BaseException:
        client.close()
        raise
    if verb.answer is None:
        return StreamingResponse(_closing(found, client), media_type="text/plain; charset=utf-8")
    client.close()
    return Response(msgspec.json.encode(found), 201 if verb.reads else 200, media_type="application/json")


def _closing(pieces: Iterator[bytes], client: JobsClient) -> Iterator[bytes]:
    try:
        yield from pieces
    finally:
        client.close()


async def _read_body(request: Request) -> str:
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > MAX_BYTES:
            raise SpecError(f"The body is larger than {MAX_BYTES} bytes.")
    try:
        return body.decode("utf-8")
    except UnicodeDecodeError:
        raise SpecError("The body is not a text in UTF-8.") from None


def _error(error: MillpondError) -> Response:
    statuses: dict[type[MillpondError], int] = {
        SpecError: 400, JobNotFoundError: 404, JobExistsError: 409, DeploymentNotFoundError: 404,
        DeploymentExistsError: 409,
    }  # fmt: skip
    body = {"code": error.code, "message": error.message, "fix": error.fix, "param": error.param}
    return JSONResponse({"error": body}, statuses.get(type(error), 500))


def make_document(verbs: Sequence[Verb] = VERBS) -> dict[str, Any]:
    """The OpenAPI document, made from the table of verbs and the types they answer with."""
    answers = [verb.answer for verb in verbs if verb.answer is not None]
    schemas, components = msgspec.json.schema_components(
        answers, ref_template="#/components/schemas/{name}", schema_hook=lambda _kind: {"description": "Plain data."}
    )
    by_verb = dict(zip([verb for verb in verbs if verb.answer is not None], schemas, strict=True))
    error = {"type": "object", "required": ["error"], "properties": {"error": {"type": "object"}}}
    paths: dict[str, dict[str, Any]] = {}
    for verb in verbs:
        content = (
            {"text/plain": {"schema": {"type": "string"}}}
            if verb.answer is None
            else {"application/json": {"schema": by_verb[verb]}}
        )
        operation: dict[str, Any] = {
            "summary": verb.text,
            "parameters": [_parameter("name", "path")] * ("{name}" in verb.path)
            + [_parameter(name, "query") for name in verb.query],
            "responses": {
                "201" if verb.reads else "200": {"description": "Done.", "content": content},
                "default": {"description": "An error.", "content": {"application/json": {"schema": error}}},
            },
        }
        if verb.reads:
            body = {"schema": {"type": "string"}}
            operation["requestBody"] = {"required": True, "content": {"application/yaml": body}}
        paths.setdefault(_PREFIX + verb.path, {})[verb.method.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Millpond jobs", "version": "1"},
        "paths": paths,
        "components": {"schemas": components, "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}},
        "security": [{"token": []}],
    }


def _parameter(name: str, place: str) -> dict[str, Any]:
    return {"name": name, "in": place, "required": place == "path", "schema": {"type": "string"}}

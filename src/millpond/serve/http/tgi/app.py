"""The TGI port's app: every route in one table, wrapped by the edge. Run by `port.py`, driven directly by tests."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from millpond.base.errors import MillpondError
from millpond.serve.gateway import Gateway
from millpond.serve.http.errors import ApiError
from millpond.serve.http.tgi.chat import answer_chat
from millpond.serve.http.tgi.cloud import answer_invocations, answer_vertex
from millpond.serve.http.tgi.completions import answer_completion
from millpond.serve.http.tgi.edge import TgiEdge
from millpond.serve.http.tgi.errors import TgiError
from millpond.serve.http.tgi.generate import answer_compat, answer_generate, answer_generate_stream
from millpond.serve.http.tgi.openapi import make_document_endpoint
from millpond.serve.http.tgi.routes import ServerRoutes, answer_chat_tokenize, answer_tokenize
from millpond.serve.http.tgi.server import TgiRoute, TgiServer
from millpond.serve.http.tgi.settings import TgiSettings

Endpoint = Callable[[Request], Awaitable[Response]] | ASGIApp

GENERATING = {
    "/generate": answer_generate,
    "/generate_stream": answer_generate_stream,
    "/v1/chat/completions": answer_chat,
    "/v1/completions": answer_completion,
    "/invocations": answer_invocations,
    "/vertex": answer_vertex,
    "/tokenize": answer_tokenize,
    "/chat_tokenize": answer_chat_tokenize,
}


def make_tgi_app(gateway: Gateway, settings: TgiSettings) -> Starlette:
    """Builds the app around a gateway, whose engine may still be loading."""
    server = TgiServer(gateway, settings)
    reads = ServerRoutes(server)
    routes = [Route(path, TgiRoute(server, answer), methods=["POST"]) for path, answer in GENERATING.items()]
    document = make_document_endpoint(gateway.version)
    gets: dict[str, Endpoint] = {
        "/health": reads.health,
        "/ping": reads.health,
        "/info": reads.info,
        "/metrics": reads.metrics,
        "/v1/models": reads.models,
        "/docs": reads.docs,
        "/api-doc/openapi.json": document,
    }
    routes += [Route(path, endpoint, methods=["GET"]) for path, endpoint in gets.items()]
    routes.append(Route("/", _Root(reads.health, TgiRoute(server, answer_compat)), methods=["GET", "POST"]))

    async def answer_error(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException):
            told = TgiError("validation", f"{error.detail}.", status=error.status_code, plain="")
            response = told.response(settings.is_strict)
            response.headers.update(error.headers or {})
            return response
        return server.failed(error).response(settings.is_strict)

    app = Starlette(
        routes=routes,
        middleware=[Middleware(TgiEdge, server=server, is_loopback=_is_loopback(settings.host))],
        exception_handlers=dict.fromkeys((TgiError, ApiError, MillpondError, HTTPException), answer_error),
    )
    app.router.redirect_slashes = False
    app.state.server = server
    return app


class _Root:
    """GET / is /health, POST / generates."""

    def __init__(self, health: Callable[[Request], Awaitable[Response]], generate: TgiRoute) -> None:
        self._health = health
        self._generate = generate

    async def __call__(self, scope: dict[str, object], receive: object, send: object) -> None:
        if scope["method"] == "POST":
            await self._generate(scope, receive, send)  # type: ignore[arg-type]  # ASGI, untyped here
        else:
            response = await self._health(Request(scope, receive))  # type: ignore[arg-type]
            await response(scope, receive, send)  # type: ignore[arg-type]


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False

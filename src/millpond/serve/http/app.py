"""The HTTP app: every route in one table, wrapped by the edge. Started by `launch.py`, driven directly by tests."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp

from millpond.base.errors import MillpondError
from millpond.serve.gateway import Engine, Gateway
from millpond.serve.http.edge import Edge
from millpond.serve.http.errors import ApiError, answer_error
from millpond.serve.http.health import HealthRoutes
from millpond.serve.http.openai.calls import GeneratingRoute
from millpond.serve.http.openai.chat import answer_chat
from millpond.serve.http.openai.completions import answer_completion
from millpond.serve.http.openai.models import ModelRoutes
from millpond.serve.http.openapi import make_document_endpoint
from millpond.serve.http.page import PAGE_FILES, make_page_endpoint
from millpond.serve.settings import ServeSettings

Endpoint = Callable[[Request], Awaitable[Response]] | ASGIApp


@dataclass(frozen=True, slots=True)
class RouteDoc:
    """A route as the reference page shows it."""

    method: str
    path: str
    text: str


ROUTES = (
    RouteDoc("GET", "/", "The chat page."),
    RouteDoc("POST", "/v1/chat/completions", "A conversation's next message; streams on request."),
    RouteDoc("POST", "/v1/completions", "The continuation of a text; streams on request."),
    RouteDoc("GET", "/v1/models", "The model that is served."),
    RouteDoc("GET", "/v1/models/{id}", "One model."),
    RouteDoc("GET", "/health", "200 while the process lives."),
    RouteDoc("GET", "/ready", "200 while requests are welcome, 503 while loading, restarting or draining."),
    RouteDoc("GET", "/metrics", "Prometheus metrics."),
    RouteDoc("GET", "/openapi.json", "This API as an OpenAPI 3.1 document."),
    RouteDoc("GET", "/page/app.js", "The chat page's program."),
    RouteDoc("GET", "/page/markdown.js", "The chat page's Markdown."),
    RouteDoc("GET", "/page/stream.js", "The chat page's reader of streams."),
    RouteDoc("GET", "/page/style.css", "The chat page's looks."),
)


def make_app(engine: Engine | None, settings: ServeSettings) -> Starlette:
    """Builds the app around an engine.

    Args:
        engine: The engine's client; None while it loads (set `app.state.gateway.engine` when it is there).
        settings: How to serve.
    """
    gateway = Gateway(engine, settings)
    endpoints = _endpoints(gateway)
    routes = [Route(doc.path.replace("{id}", "{id:path}"), endpoints[doc.path], methods=[doc.method]) for doc in ROUTES]
    app = Starlette(
        routes=routes,
        middleware=[Middleware(Edge, gateway=gateway, paths=tuple(endpoints))],
        exception_handlers=dict.fromkeys((ApiError, MillpondError, HTTPException), answer_error),
    )
    app.router.redirect_slashes = False
    app.state.gateway = gateway
    return app


def _endpoints(gateway: Gateway) -> dict[str, Endpoint]:
    models = ModelRoutes(gateway, int(time.time()))
    health = HealthRoutes(gateway)
    endpoints: dict[str, Endpoint] = {
        "/v1/chat/completions": GeneratingRoute(gateway, answer_chat, "messages"),
        "/v1/completions": GeneratingRoute(gateway, answer_completion),
        "/v1/models": models.list,
        "/v1/models/{id}": models.get,
        "/health": health.health,
        "/ready": health.ready,
        "/metrics": health.metrics,
        "/openapi.json": make_document_endpoint(gateway.version),
    }
    for path in PAGE_FILES:
        endpoints[path] = make_page_endpoint(path)
    return endpoints

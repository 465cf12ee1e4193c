"""The outermost ring of the HTTP app: who may speak to it, what every response carries, what happens on a bug.

A plain ASGI middleware, so that a stream's chunks pass through one small function. Owns the Host check (DNS rebinding),
the key check, the security headers, the request id and the count of responses by route and status. Knows no bodies.
"""

from __future__ import annotations

import logging
import re
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from millpond.serve.gateway import Gateway
from millpond.serve.http.errors import ApiError, internal_error, invalid

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
_OTHER = "other"
_log = logging.getLogger("millpond.serve")


class Edge:
    """Wraps the routed app.

    Args:
        app: What to wrap.
        gateway: For its settings and metrics.
        paths: The paths of all routes, `{name}` allowed as the last part; anything else is counted as "other".
    """

    def __init__(self, app: ASGIApp, *, gateway: Gateway, paths: tuple[str, ...]) -> None:
        self._app = app
        self._gateway = gateway
        self._is_loopback = gateway.settings.is_loopback
        self._exact = frozenset(path for path in paths if "{" not in path)
        self._prefixes = {path.partition("{")[0]: path for path in paths if "{" in path}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        route = self._route(scope["path"])
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._complete(message, request_id)
                self._gateway.metrics.http_requests.add(1.0, route, str(message["status"]))
            await send(message)

        refusal = self._refusal(scope["path"], headers)
        if refusal is not None:
            await refusal.response()(scope, receive, send_with_headers)
            return
        try:
            await self._app(scope, receive, send_with_headers)
        except Exception:
            _log.exception("request %s to %s failed", request_id, route)
            if started:
                raise
            await internal_error().response()(scope, receive, send_with_headers)

    def _route(self, path: str) -> str:
        if path in self._exact:
            return path
        return next((route for prefix, route in self._prefixes.items() if path.startswith(prefix)), _OTHER)

    def _complete(self, message: Message, request_id: str) -> None:
        headers = MutableHeaders(scope=message)
        for name, value in _HEADERS.items():
            headers.setdefault(name, value)
        headers["X-Request-Id"] = request_id

    def _refusal(self, path: str, headers: Headers) -> ApiError | None:
        settings = self._gateway.settings
        if len(headers.getlist("host")) > 1:
            return invalid("There are several Host headers; send one.", code="host_not_clear")
        if self._is_loopback and not is_local_name(headers.get("host", "localhost"), settings.host):
            # A page of a foreign site whose name was pointed at this machine: the browser thinks it is same-origin.
            return ApiError(
                403,
                "This server answers to localhost only; bind it to another address to reach it by name.",
                code="host_not_allowed",
            )
        if settings.keys is not None and path.startswith("/v1/"):
            scheme, _, key = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not settings.keys.accepts(key.strip()):
                return _KeyError()
        return None


class _KeyError(ApiError):
    def __init__(self) -> None:
        super().__init__(401, "No valid API key was given. Send Authorization: Bearer KEY.", code="invalid_api_key")

    def headers(self) -> dict[str, str]:
        return {"WWW-Authenticate": "Bearer"}


def is_local_name(host: str, bound: str) -> bool:
    """Returns whether a Host header names this machine, or the address that is bound."""
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    name = name.strip("[]").rstrip(".").lower()
    return name in ("localhost", "127.0.0.1", "::1", bound) or name.endswith(".localhost")

"""The outermost ring of the TGI port: keys, origins, the Host check, and what happens on a bug.

A plain ASGI middleware like that of the OpenAI port, in TGI's words: a missing key is a 401 without a body, unknown
routes have no body either. Knows no bodies.
"""

from __future__ import annotations

import logging
import re
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from millpond.serve.http.edge import is_local_name
from millpond.serve.http.tgi.errors import TgiError
from millpond.serve.http.tgi.server import TgiServer

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store",
}
_OPEN = frozenset(("/health", "/ping", "/info", "/metrics", "/docs", "/api-doc/openapi.json", "/v1/models"))
_log = logging.getLogger("millpond.serve")


class TgiEdge:
    """Wraps the routed app.

    Args:
        app: What to wrap.
        server: The port's own state.
        is_loopback: Only this machine can connect, so only its names are in Host headers.
    """

    def __init__(self, app: ASGIApp, *, server: TgiServer, is_loopback: bool) -> None:
        self._app = app
        self._server = server
        self._is_loopback = is_loopback

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _REQUEST_ID.fullmatch(given) else uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        started = False

        async def send_with_headers(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                self._complete(message, request_id, headers.get("origin"))
            await send(message)

        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, send_with_headers)
            return
        try:
            await self._app(scope, receive, send_with_headers)
        except Exception as error:
            _log.exception("request %s failed", request_id)
            if started:
                raise
            told = self._server.failed(error)
            await told.response(self._server.settings.is_strict)(scope, receive, send_with_headers)

    def _complete(self, message: Message, request_id: str, origin: str | None) -> None:
        headers = MutableHeaders(scope=message)
        for name, value in _HEADERS.items():
            headers.setdefault(name, value)
        headers["X-Request-Id"] = request_id
        if origin is not None and self._allows(origin):
            headers["Access-Control-Allow-Origin"] = origin
            headers["Vary"] = "Origin"

    def _allows(self, origin: str) -> bool:
        origins = self._server.settings.origins
        return "*" in origins or origin in origins

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        settings = self._server.settings
        if len(headers.getlist("host")) > 1:
            return TgiError("validation", "There are several Host headers.", status=400).response(settings.is_strict)
        if self._is_loopback and not is_local_name(headers.get("host", "localhost"), settings.host):
            # A page of a foreign site whose name was pointed at this machine: the browser thinks it is same-origin.
            text = "This server answers to localhost only; bind it to another address to reach it by name."
            return TgiError("validation", text, status=403).response(settings.is_strict)
        origin = headers.get("origin")
        if scope["method"] == "OPTIONS" and origin is not None and self._allows(origin):
            allowed = {"Access-Control-Allow-Methods": "GET, POST", "Access-Control-Allow-Headers": "*"}
            return Response(headers=allowed)
        is_open = scope["path"] in _OPEN or (scope["path"] == "/" and scope["method"] == "GET")
        if settings.keys is not None and not is_open and scope["path"] != "/chat_tokenize":
            scheme, _, key = headers.get("authorization", "").partition(" ")
            if scheme.lower() != "bearer" or not settings.keys.accepts(key.strip()):
                return TgiError("validation", "No valid key was given.", status=401, plain="").response(
                    settings.is_strict
                )
        return None

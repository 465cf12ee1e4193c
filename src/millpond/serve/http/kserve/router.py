"""Which path is answered by what, on the port that speaks the Open Inference Protocol.

Paths are matched once and remembered. Also owns who may ask: on a loopback address only pages and programs of this
machine. A bug in a route becomes a 500 and a line in the log; the connection goes on.
"""

from __future__ import annotations

import functools
import logging
import re
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from millpond.serve.http.kserve import routes
from millpond.serve.http.kserve.errors import error_body, respond_error
from millpond.serve.http.kserve.exchange import Exchange
from millpond.serve.http.kserve.generate import answer_generate, answer_generate_stream
from millpond.serve.http.kserve.infer import answer_infer
from millpond.serve.http.kserve.routes import Route, Target
from millpond.serve.kserve.server import KServe
from millpond.serve.servables.errors import ServableError

AsyncRoute = Callable[[KServe, Exchange, Target], Coroutine[Any, Any, None]]
_MODEL = re.compile(
    r"/v2/models/([^/]+)(?:/versions/([0-9]{1,18}))?"
    r"(?:/(infer|generate|generate_stream|ready|config|stats|trace/setting))?"
)
_CONTROL = re.compile(r"/v2/repository(?:/([^/]+))?/(?:(index)|models/([^/]+)/(load|unload))")
_MEMORY = re.compile(r"/v2/(system|cuda)sharedmemory(?:/region/([^/]+))?/(status|register|unregister)")
_DOCS = re.compile(r"/v2/docs/models/([^/]+)(?:/versions/([0-9]{1,18}))?(?:/(openapi\.json|servable\.proto))?")
_MAX_REMEMBERED = 1024
_log = logging.getLogger("millpond.serve.kserve")


@dataclass(frozen=True, slots=True)
class _Matched:
    methods: tuple[str, ...]
    route: Route | None
    waits: AsyncRoute | None
    target: Target
    category: str = "metadata"  # what of the protocol it is, in the words of its restrictions


class Router:
    """Answers the exchanges of one port.

    Args:
        server: What is behind it.
        is_local_name: Whether a name in `Host` is one of this machine; None where any name will do.
    """

    def __init__(self, server: KServe, is_local_name: Callable[[str], bool] | None) -> None:
        self._server = server
        self._locks = server.settings.http_restrictions
        self._is_local_name = None if is_local_name is None else functools.lru_cache(256)(is_local_name)
        self._remembered: dict[str, _Matched | None] = {}

    def handle(self, exchange: Exchange) -> None:
        """Answers one exchange, now or later."""
        head = exchange.request.head
        try:
            if head is not None and head.route is not None:
                head.route(exchange)
            else:
                self._answer(exchange)
        except ServableError as error:
            self._refuse(exchange, error)
        except Exception:
            self._fail(exchange)

    def _answer(self, exchange: Exchange) -> None:
        request = exchange.request
        if self._is_local_name is not None and not self._is_from_here(exchange):
            exchange.respond(403, [error_body("This server answers to localhost only; bind it to another address.")])
            return
        matched = self._match(request.path)
        if matched is None:
            exchange.respond(404, [error_body("Not Found")])
        elif request.method not in matched.methods:
            exchange.respond(405, [error_body("Method Not Allowed")])
        elif (lock := self._locks.get(matched.category)) is not None and not lock.opens(
            request.headers.get(lock.key.encode())
        ):
            exchange.respond(403, [error_body(f"This API is restricted, expecting header '{lock.header}'")])
        elif matched.route is not None:
            if request.head is not None:  # the same bytes may do the same again
                request.head.route = self._bound(matched.route, matched.target)
            matched.route(self._server, exchange, matched.target)
        elif matched.waits is not None:
            exchange.run(self._wait(matched.waits(self._server, exchange, matched.target), exchange))

    def _bound(self, route: Route, target: Target) -> Callable[[Exchange], None]:
        server = self._server
        return lambda exchange: route(server, exchange, target)

    async def _wait(self, work: Coroutine[Any, Any, None], exchange: Exchange) -> None:
        try:
            await work
        except ServableError as error:
            self._refuse(exchange, error)
        except Exception:
            self._fail(exchange)

    def _refuse(self, exchange: Exchange, error: ServableError) -> None:
        respond_error(exchange, error, is_strict=self._server.settings.is_strict)

    def _fail(self, exchange: Exchange) -> None:
        _log.exception("a request to %s failed", exchange.request.path[:200])
        exchange.closes = True
        if exchange.is_answered:  # or half of it
            exchange.cut_off()
        exchange.respond(500, [error_body("Internal error; the server's log says more.")])

    def _is_from_here(self, exchange: Exchange) -> bool:
        assert self._is_local_name is not None
        headers = exchange.request.headers
        host = headers.get(b"host", b"localhost").decode("latin-1")
        if not self._is_local_name(host):
            return False
        # A browser says from which page a request comes; a foreign page must not load or unload models.
        origin = headers.get(b"origin")
        return origin is None or self._is_local_name(origin.decode("latin-1").partition("://")[2])

    def _match(self, path: str) -> _Matched | None:
        try:
            return self._remembered[path]
        except KeyError:
            pass
        found = match(unquote(path, errors="replace") if "%" in path else path)
        if len(self._remembered) >= _MAX_REMEMBERED:
            self._remembered.clear()
        self._remembered[path] = found
        return found


def match(path: str) -> _Matched | None:
    """Returns what answers a path; None for nothing."""
    fixed = _FIXED.get(path)
    if fixed is not None:
        return fixed
    if (found := _MODEL.fullmatch(path)) is not None:
        name, version, action = found.groups()
        methods, route, waits = _ACTIONS[action or ""]
        category = _CATEGORIES.get(action or "", "inference")
        return _Matched(methods, route, waits, Target(name, int(version) if version else None), category)
    if (found := _CONTROL.fullmatch(path)) is not None:
        repository, _, name, action = found.groups()
        waits = {"load": routes.load, "unload": routes.unload}.get(action or "", routes.index)
        return _Matched(("POST",), None, waits, Target(name or "", name=repository or ""), "model-repository")
    if (found := _MEMORY.fullmatch(path)) is not None:
        kind, region, action = found.groups()
        methods, route = _REGIONS[action]
        return _Matched(methods, route, None, Target(kind=kind, name=region or ""), "shared-memory")
    if (found := _DOCS.fullmatch(path)) is not None:
        name, version, file = found.groups()
        target = Target(name, int(version) if version else None, kind=file or "")
        return _Matched(_GET, routes.docs_of_model, None, target)
    return None


async def _generate(server: KServe, exchange: Exchange, target: Target) -> None:
    await answer_generate(server, exchange, target.model, target.version)


async def _generate_stream(server: KServe, exchange: Exchange, target: Target) -> None:
    await answer_generate_stream(server, exchange, target.model, target.version)


_GET, _POST, _BOTH = ("GET",), ("POST",), ("GET", "POST")
_FIXED = {
    "/v2": _Matched(_GET, routes.metadata, None, Target()),
    "/v2/health/live": _Matched(_GET, routes.live, None, Target(), "health"),
    "/v2/health/ready": _Matched(_GET, routes.ready, None, Target(), "health"),
    "/v2/models/stats": _Matched(_GET, routes.statistics, None, Target(), "statistics"),
    "/v2/trace/setting": _Matched(_BOTH, routes.trace, None, Target(), "trace"),
    "/v2/docs/openapi.json": _Matched(_GET, routes.docs_of_all, None, Target()),
    "/v2/logging": _Matched(_BOTH, routes.logs, None, Target(), "logging"),
}
_ACTIONS: dict[str, tuple[tuple[str, ...], Route | None, AsyncRoute | None]] = {
    "": (_GET, routes.model_metadata, None),
    "ready": (_GET, routes.model_ready, None),
    "config": (_GET, routes.model_config, None),
    "stats": (_GET, routes.statistics, None),
    "trace/setting": (_BOTH, routes.trace, None),
    "infer": (_POST, answer_infer, None),
    "generate": (_POST, None, _generate),
    "generate_stream": (_POST, None, _generate_stream),
}
_CATEGORIES = {
    "": "metadata", "ready": "health", "config": "model-config", "stats": "statistics", "trace/setting": "trace"
}  # fmt: skip
_REGIONS: dict[str, tuple[tuple[str, ...], Route]] = {
    "status": (_GET, routes.region_status),
    "register": (_POST, routes.region_register),
    "unregister": (_POST, routes.region_unregister),
}

"""`TgiServer`: what the routes of one TGI port share, and `TgiRoute`, from "is there a place" to the last byte.

Owns the places for requests (TGI refuses beyond them at once, there is no queue) and whether the last generation
failed, which decides what /health does. Knows no bodies.
"""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from millpond.serve.gateway import Engine, Gateway
from millpond.serve.http.stream import ClientGone
from millpond.serve.http.tgi.errors import TgiError, as_tgi, overloaded
from millpond.serve.http.tgi.metrics import TgiMetrics
from millpond.serve.http.tgi.settings import Limits, TgiSettings


class TgiServer:
    """One TGI port.

    Attributes:
        is_healthy: False after a failed generation, until one has worked again.
    """

    def __init__(self, gateway: Gateway, settings: TgiSettings) -> None:
        self.gateway = gateway
        self.settings = settings
        self.metrics = TgiMetrics()
        self.is_healthy = True
        self._num_taken = 0

    @contextmanager
    def places(self, count: int) -> Iterator[None]:
        """Holds places for `count` requests while the block runs.

        Raises:
            TgiError: There are not so many left.
        """
        if self._num_taken + count > self.settings.max_concurrent_requests:
            raise overloaded()
        self._num_taken += count
        try:
            yield
        finally:
            self._num_taken -= count

    def failed(self, error: Exception) -> TgiError:
        """Takes note of an error and returns how it is told."""
        told = as_tgi(error)
        if told.status != 499:
            self.metrics.count_failure(told.kind)
        if told.kind in ("generation", "incomplete_generation"):
            self.is_healthy = False
        return told


@dataclass(frozen=True, slots=True)
class TgiCall:
    """One call of a generating route.

    Attributes:
        http: The HTTP request.
        server: The port's own state.
        engine: The engine.
        stack: Closes what the call holds, at its end.
        arrived_s: `perf_counter` at its beginning.
        created: Unix time, whole seconds.
    """

    http: HttpRequest
    server: TgiServer
    engine: Engine
    stack: AsyncExitStack
    arrived_s: float = field(default_factory=time.perf_counter)
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def limits(self) -> Limits:
        """What fits the engine."""
        return self.server.settings.limits(self.engine.info)


Answer = Callable[[TgiCall], Awaitable[Response]]


class TgiRoute:
    """An ASGI endpoint that generates, or reads a body as those that do.

    Args:
        server: The port's own state.
        answer: Translates the call and returns its response.
    """

    def __init__(self, server: TgiServer, answer: Answer) -> None:
        self._server = server
        self._answer = answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gateway = self._server.gateway
        engine = gateway.ready_engine()
        with gateway.open_request():
            async with AsyncExitStack() as stack:
                call = TgiCall(HttpRequest(scope, receive), self._server, engine, stack)
                try:
                    response = await self._answer(call)
                except ClientGone:
                    response = Response(status_code=499)  # nobody reads it
                await response(scope, receive, send)

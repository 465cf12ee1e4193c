"""`AppPort`: an ASGI application on an address of its own, run by uvicorn inside a process that has other ports too.

Used by protocols whose HTTP is an application (`http/tgi`). Knows no routes; what draining means is the protocol's.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator

import uvicorn
from starlette.types import ASGIApp

from millpond.base.errors import ConfigError
from millpond.serve.http.wire import MAX_HEAD_BYTES, http_protocol
from millpond.serve.listeners import listen

_KEEP_ALIVE_S = 75
_CUT_OFF_S = 2
_LOOK_S = 0.005

Drain = Callable[[float], Awaitable[object]]


class AppPort:
    """An application on one address.

    Args:
        name: For messages.
        app: The application.
        host: An address of this machine.
        port: 0 picks a free one.
        param: The setting that holds the port.
        drain: Refuses new requests and waits, at most so many seconds, for those that run.
    """

    def __init__(self, name: str, app: ASGIApp, *, host: str, port: int, param: str, drain: Drain) -> None:
        self.name = name
        self._app = app
        self._host = host
        self._port = port
        self._param = param
        self._drain = drain
        self._listener: socket.socket | None = None
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"

    async def start(self) -> None:
        """Binds and answers from now on.

        Raises:
            ConfigError: The address is taken or is not ours.
        """
        try:
            self._listener = listen(self._host, self._port)
        except OSError as error:
            raise ConfigError(
                f"The address {self.address} of {self.name} cannot be bound: {error.strerror or error}.",
                fix=f"Stop what uses it, or give another with --{self._param} (0 picks a free one).",
                param=self._param,
            ) from None
        self._port = self._listener.getsockname()[1]
        self._server = _Server(_config(self._app))
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        while not self._server.started and not self._serving.done():
            await asyncio.sleep(_LOOK_S)

    async def drain(self, seconds: float) -> None:
        """Refuses new requests and waits, at most so long, until those that run have been answered."""
        await self._drain(seconds)

    async def stop(self) -> None:
        """Cuts off what still runs and closes the socket."""
        server, serving, listener = self._server, self._serving, self._listener
        self._server = self._serving = self._listener = None
        if server is not None and serving is not None:
            server.should_exit = True
            await asyncio.gather(serving, return_exceptions=True)
        if listener is not None:
            listener.close()


class _Server(uvicorn.Server):
    """Uvicorn without its signal handlers: the process is not its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _config(app: ASGIApp) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=http_protocol(),
        lifespan="off",
        ws="none",
        log_config=None,
        log_level="error",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_CUT_OFF_S,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
    )

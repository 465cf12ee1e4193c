"""The REST port: the application on an address, in the clear or with TLS.

Started by `millpond serve` and by `mindspore_serving.server.start_restful_server`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator

import uvicorn

from millpond.base.errors import ConfigError
from millpond.serve.http.mindspore.app import RestApp, RestSettings
from millpond.serve.http.wire import MAX_HEAD_BYTES, http_protocol
from millpond.serve.listeners import listen
from millpond.serve.mindspore.dispatch import Dispatcher

_KEEP_ALIVE_S = 75
_CUT_OFF_S = 2


class MindSporeRestPort:
    """The application on one address.

    Args:
        dispatcher: Runs the calls.
        host: An address of this machine.
        port: 0 picks a free one.
        settings: How to answer.
        tls: None serves in the clear.
    """

    name = "MindSpore REST"

    def __init__(
        self,
        dispatcher: Dispatcher,
        host: str,
        port: int,
        *,
        settings: RestSettings | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._dispatcher = dispatcher
        self._host = host
        self._port = port
        self._settings = settings or RestSettings()
        self._tls = tls
        self._listener: socket.socket | None = None
        self._server: _Server | None = None
        self._serving: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"

    async def start(self) -> None:
        """Binds and answers from now on; raises `ConfigError` when the address cannot be bound."""
        try:
            self._listener = listen(self._host, self._port)
        except OSError as error:
            raise ConfigError(
                f"MindSpore's REST address {self.address} cannot be bound: {error.strerror or error}.",
                fix="Stop what uses it, or give another.",
                param="mindspore.http_port",
            ) from None
        # asyncio leaves it off for sockets it did not make; a reply's head and body would wait for each other.
        self._listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._port = self._listener.getsockname()[1]
        self._server = _Server(self._config())
        self._serving = asyncio.create_task(self._server.serve(sockets=[self._listener]))
        while not self._server.started and not self._serving.done():
            await asyncio.sleep(0.005)

    async def drain(self, seconds: float) -> None:
        """Refuses new requests and waits for those that run."""
        self._dispatcher.draining = True
        deadline = asyncio.get_running_loop().time() + seconds
        while self._dispatcher.num_open and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        """Cuts off what runs and closes the socket."""
        if self._server is not None and self._serving is not None:
            self._server.should_exit = True
            await self._serving
        self._server = self._serving = None
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _config(self) -> uvicorn.Config:
        config = uvicorn.Config(
            RestApp(self._dispatcher, self._settings),
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
        config.load()
        config.ssl = self._tls
        return config


class _Server(uvicorn.Server):
    """Uvicorn without its signal handlers: the process is not its own."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

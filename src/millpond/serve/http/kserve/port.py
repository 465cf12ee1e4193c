"""`HttpPort`: a listening socket whose connections are `HttpConnection`s; a `serve.ports.Port`."""

from __future__ import annotations

import asyncio
import contextlib

from millpond.base.errors import ConfigError
from millpond.serve.http.kserve.connection import HttpConnection
from millpond.serve.http.kserve.limits import HttpLimits
from millpond.serve.sweeping import sweep

_BACKLOG = 2048


class HttpPort:
    """Serves one handler.

    Args:
        name: For messages.
        host: Address to bind.
        port: 0 picks a free one.
        limits: Handler and bounds.
        param: The setting that holds the port, for messages.
    """

    def __init__(self, name: str, host: str, port: int, *, limits: HttpLimits, param: str) -> None:
        self.name = name
        self._host = host
        self._port = port
        self._limits = limits
        self._param = param
        self._connections: set[HttpConnection] = set()
        self._server: asyncio.Server | None = None
        self._checks: asyncio.Task[None] | None = None

    @property
    def address(self) -> str:
        return f"[{self._host}]:{self._port}" if ":" in self._host else f"{self._host}:{self._port}"

    @property
    def port(self) -> int:
        """The port that was really taken."""
        return self._port

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                lambda: HttpConnection(self._limits, self._connections), self._host, self._port, backlog=_BACKLOG
            )
        except OSError as error:
            raise ConfigError(
                f"Port {self._port} on {self._host} cannot be bound: {error.strerror or error}.",
                fix=f"Stop what uses it, or give another with --{self._param} (0 picks a free one).",
                param=self._param,
            ) from None
        self._port = self._server.sockets[0].getsockname()[1]
        self._checks = loop.create_task(sweep(self._check))

    async def drain(self, seconds: float) -> None:
        self._limits.is_draining = True
        deadline = asyncio.get_running_loop().time() + seconds
        for connection in list(self._connections):
            connection.close_idle()
        while self._limits.num_busy and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)

    async def stop(self) -> None:
        self._limits.is_draining = True
        if self._checks is not None:
            self._checks.cancel()
            await asyncio.gather(self._checks, return_exceptions=True)
            self._checks = None
        if self._server is not None:
            self._server.close()
            for connection in list(self._connections):
                connection.abort()
            with contextlib.suppress(OSError):
                await self._server.wait_closed()
            self._server = None

    def _check(self, now: float) -> None:
        for connection in list(self._connections):
            connection.check(now)

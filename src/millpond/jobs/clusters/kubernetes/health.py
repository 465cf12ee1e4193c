"""`/healthz` and `/metrics` of the operator, for probes and Prometheus. Labels are few and fixed: no job's name.

Owned by the package's entry; knows the operator's counts only through a function.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

_MAX_REQUEST = 8192
_TIMEOUT_S = 5.0


class Health:
    """A small HTTP server.

    Args:
        is_well: Whether the process should go on living.
        read: Metrics by name with labels, as Prometheus writes them.
    """

    def __init__(self, is_well: Callable[[], bool], read: Callable[[], Mapping[str, float]]) -> None:
        self._is_well = is_well
        self._read = read
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> int:
        """Listens; returns the port."""
        self._server = await asyncio.start_server(self._answer, host, port, limit=_MAX_REQUEST)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        """Stops listening."""
        if self._server is not None:
            self._server.close()
            await self._server.wait_closed()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
            way = head.split(b" ", 2)[1:2]
            status, text = self._page(way[0].decode("ascii", "replace") if way else "")
            body = text.encode()
            start = f"HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {len(body)}\r\n"
            writer.write(start.encode() + b"Connection: close\r\n\r\n" + body)
            async with asyncio.timeout(_TIMEOUT_S):
                await writer.drain()
        except (TimeoutError, OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            return
        finally:
            writer.close()

    def _page(self, path: str) -> tuple[str, str]:
        if path == "/healthz":
            return ("200 OK", "ok\n") if self._is_well() else ("503 Service Unavailable", "it stands still\n")
        if path == "/metrics":
            return "200 OK", "".join(f"{name} {value:g}\n" for name, value in self._read().items())
        return "404 Not Found", "there is /healthz and /metrics\n"

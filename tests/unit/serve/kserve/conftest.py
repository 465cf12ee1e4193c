"""A server over servables in this process, and raw connections to its HTTP port."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from millpond.serve.http.kserve.port import HttpPort
from millpond.serve.http.kserve.service import make_http_port
from millpond.serve.kserve.server import KServe
from millpond.serve.kserve.settings import TritonSettings
from millpond.serve.servables.backend import ModelFolder
from millpond.serve.servables.config import ServableConfig
from millpond.serve.servables.registry import Servables
from tests.support.memory_backend import MemoryBackend, Work, echo, echo_config

MAX_BODY = 1 << 16


@dataclass
class Reply:
    """One response as it came."""

    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> object:
        return json.loads(self.body)


@dataclass
class Served:
    """A server and its HTTP port."""

    server: KServe
    port: HttpPort
    backend: MemoryBackend
    writers: list[asyncio.StreamWriter] = field(default_factory=list)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port.port)
        self.writers.append(writer)
        return reader, writer

    async def close(self) -> None:
        await self.port.stop()
        for writer in self.writers:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

    async def ask(
        self, method: str, path: str, body: object = None, *, headers: dict[str, str] | None = None
    ) -> Reply:
        """Sends one request on a connection of its own."""
        reader, writer = await self.connect()
        writer.write(request_bytes(method, path, body, headers))
        reply = await read_reply(reader)
        writer.close()
        return reply

    async def infer(self, body: object, model: str = "echo", **headers: str) -> Reply:
        return await self.ask("POST", f"/v2/models/{model}/infer", body, headers=headers)


def request_bytes(method: str, path: str, body: object = None, headers: dict[str, str] | None = None) -> bytes:
    """A request as it goes over the wire."""
    data = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(data)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + data


async def read_reply(reader: asyncio.StreamReader) -> Reply:
    """Reads one response."""
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10)).decode("latin-1")
    first, *rest = head.strip().split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in rest)}
    if headers.get("transfer-encoding") == "chunked":
        body = b""
        while size := int((await reader.readline()).strip(), 16):
            body += (await reader.readexactly(size + 2))[:-2]
        await reader.readline()
    else:
        body = await reader.readexactly(int(headers["content-length"]))
    return Reply(int(first.split()[1]), headers, body)


Serve = Callable[..., Awaitable[Served]]


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    """Starts a server of a work, by default one that echoes input X as output X."""
    made: list[tuple[Served, Servables]] = []

    async def start(
        work: Work = echo, *, configs: tuple[ServableConfig, ...] | None = None, is_strict: bool = False
    ) -> Served:
        backend = MemoryBackend(work, concurrency=8)
        servables = Servables({"memory": backend})
        for config in configs or (echo_config(),):
            await servables.add(config, ModelFolder(None, 1))
        settings = TritonSettings(is_strict=is_strict, max_body_bytes=MAX_BODY)
        server = KServe(servables, None, settings)
        port = make_http_port(server, 0)
        await port.start()
        served = Served(server, port, backend)
        made.append((served, servables))
        return served

    yield start
    for served, servables in made:
        await served.close()
        await servables.close()


def echo_body(*values: int, **more: object) -> dict[str, object]:
    """An infer request for the echo."""
    item = {"name": "X", "shape": [len(values)], "datatype": "INT32", "data": list(values)}
    return {"inputs": [item], **more}

"""Every port that asks a language model as a servable, over one engine whose steps a test makes."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from millpond.serve.backends.llm import LlmBackend
from millpond.serve.grpc.kserve.port import GrpcPort
from millpond.serve.grpc.mindspore.port import MindSporeGrpcPort
from millpond.serve.http.kserve.service import make_http_port
from millpond.serve.http.mindspore.port import MindSporeRestPort
from millpond.serve.kserve.server import KServe
from millpond.serve.kserve.settings import TritonSettings
from millpond.serve.mindspore.dispatch import Dispatcher
from millpond.serve.ports import Port
from millpond.serve.servables.backend import ModelFolder
from millpond.serve.servables.registry import Servables
from tests.support.pushed_engine import PushedEngine

MODEL = "tiny"


@dataclass(frozen=True)
class LanguagePorts:
    """Where the ports are, "host:port"."""

    servables: Servables
    triton_http: str
    triton_grpc: str
    mindspore_rest: str
    mindspore_grpc: str


@asynccontextmanager
async def language_ports(engine: PushedEngine) -> AsyncIterator[LanguagePorts]:
    """The ports, open while the block runs."""
    backend = LlmBackend()
    servables = Servables({backend.name: backend})
    await servables.add(backend.share(MODEL, engine), ModelFolder(None, 1))
    server = KServe(servables, None, TritonSettings())
    ports: list[Port] = [
        make_http_port(server, 0),
        GrpcPort(server, 0),
        MindSporeRestPort(Dispatcher(servables), "127.0.0.1", 0),
        MindSporeGrpcPort(Dispatcher(servables), "127.0.0.1:0"),
    ]
    async with AsyncExitStack() as stack:
        stack.push_async_callback(servables.close)
        stack.callback(server.close)
        for port in ports:
            await port.start()
            stack.push_async_callback(port.stop)
        yield LanguagePorts(servables, *(port.address for port in ports))


async def post(address: str, path: str, body: object, *, receive_bytes: int | None = None) -> socket.socket:
    """Sends a request on a connection that only its caller reads; `receive_bytes` is what the system keeps for it."""
    host, _, port = address.rpartition(":")
    client = socket.socket()
    client.setblocking(False)
    if receive_bytes is not None:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, (host, int(port)))
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
    await loop.sock_sendall(client, head.encode() + content)
    return client


def ask_triton(max_tokens: int) -> tuple[str, object]:
    """A path of Triton's HTTP and a body for it."""
    sampling = json.dumps({"temperature": 0, "max_tokens": max_tokens})
    return f"/v2/models/{MODEL}/generate_stream", {"text_input": "hi", "stream": True, "sampling_parameters": sampling}


def ask_mindspore(max_tokens: int) -> tuple[str, object]:
    """A path of MindSpore's REST and a body for it."""
    instance = {"text_input": "hi", "temperature": 0.0, "max_tokens": max_tokens}
    return f"/model/{MODEL}:generated_stream", {"instances": [instance]}

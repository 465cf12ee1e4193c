"""A server of gRPC on our own HTTP/2 with methods on plain bytes, and gRPC's own client of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio

from millpond.serve.grpc.http2.calls import Message, ServerCall
from millpond.serve.grpc.http2.server import Http2Server

MAX_BYTES = 8 << 20


class Service:
    """Methods on plain bytes."""

    def __init__(self) -> None:
        self.num_cancelled = 0
        self.release = asyncio.Event()

    async def echo(self, request: bytes, context: Any) -> bytes:
        return request

    async def metadata(self, request: bytes, context: Any) -> bytes:
        return repr(sorted(context.invocation_metadata())).encode()

    async def abort(self, request: bytes, context: Any) -> bytes:
        await context.abort(grpc.StatusCode.NOT_FOUND, "nicht da: ü%\n")
        return b""

    async def broken(self, request: bytes, context: Any) -> bytes:
        raise ValueError("a bug")

    async def slow(self, request: bytes, context: Any) -> bytes:
        try:
            await self.release.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        return request

    async def count(self, request: bytes, context: Any) -> AsyncIterator[bytes]:
        for number in range(int(request)):
            yield b"%d" % number

    async def chat(self, requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
        async for request in requests:
            yield request * 2

    async def total(self, requests: AsyncIterator[bytes], context: Any) -> bytes:
        return b"%d" % sum([len(request) async for request in requests])

    def handlers(self) -> grpc.GenericRpcHandler:
        unary = {name: getattr(self, name) for name in ("echo", "metadata", "abort", "broken", "slow")}
        methods: dict[str, Any] = {name: grpc.unary_unary_rpc_method_handler(method) for name, method in unary.items()}
        methods["count"] = grpc.unary_stream_rpc_method_handler(self.count)
        methods["chat"] = grpc.stream_stream_rpc_method_handler(self.chat)
        methods["total"] = grpc.stream_unary_rpc_method_handler(self.total)
        return grpc.method_handlers_generic_handler("s", methods)


def direct(call: ServerCall, message: Message) -> None:
    call.answer(bytes(message)[::-1])


class Served:
    """A running server with a client."""

    def __init__(self, service: Service, server: Http2Server, port: int, channel: grpc.aio.Channel) -> None:
        self.service, self.server, self.port = service, server, port
        self.channel: Any = channel  # its stubs say that a method without a serializer takes nothing

    async def ask(self, method: str, message: bytes = b"", **options: Any) -> bytes:
        answer: bytes = await self.channel.unary_unary(f"/s/{method}")(message, **options)
        return answer


@contextlib.asynccontextmanager
async def serving() -> AsyncIterator[Served]:
    """A running server, ended afterwards."""
    service = Service()
    server = Http2Server(MAX_BYTES)
    server.add_direct("/s/direct", direct)
    server.add_generic_rpc_handlers((service.handlers(),))
    port = await server.start("127.0.0.1", 0)
    options = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", options) as channel:
        yield Served(service, server, port, channel)
    await server.stop(0)

"""The gRPC port: `MSService` on an address, over a dispatcher.

Errors of the protocol are in its replies; the gRPC status is OK but for calls that end before they have one. Started
by `millpond serve` and by `mindspore_serving.server.start_grpc_server`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import TYPE_CHECKING

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from millpond.base.errors import ConfigError
from millpond.serve.grpc.http2.calls import ServerCall
from millpond.serve.grpc.http2.server import Http2Server
from millpond.serve.grpc.mindspore.messages import ReplyWriter, read_request, write_failure, write_reply
from millpond.serve.grpc.outlets import Outlet, Unread
from millpond.serve.grpc.tls import GrpcTls, bind
from millpond.serve.mindspore.calls import SYSTEM_ERROR, CallError, Failure, Result, Text
from millpond.serve.mindspore.dispatch import Dispatcher
from millpond.serve.proto import ms_service_pb2 as pb

if TYPE_CHECKING:
    _Context = grpc.aio.ServicerContext[bytes, pb.PredictReply]

SERVICE = "mindspore.serving.proto.MSService"
_NO_REQUEST = "The request is no PredictRequest."
_log = logging.getLogger("millpond.serve.mindspore")


class MindSporeGrpcPort:
    """The service on one address.

    Args:
        dispatcher: Runs the calls.
        address: "host:port" or "unix:/path".
        max_message_bytes: Largest request and reply.
        tls: None serves in the clear.
    """

    name = "MindSpore gRPC"

    def __init__(
        self,
        dispatcher: Dispatcher,
        address: str,
        *,
        max_message_bytes: int = 100 << 20,
        tls: GrpcTls | None = None,
    ) -> None:
        self._dispatcher = dispatcher
        self._address = address
        self._max_message_bytes = max_message_bytes
        self._tls = tls
        self._server: grpc.aio.Server | Http2Server | None = None

    @property
    def address(self) -> str:
        """Where it listens."""
        return self._address

    async def start(self) -> None:
        """Binds and answers from now on; raises `ConfigError` when the address cannot be bound."""
        is_clear = self._tls is None and not self._address.startswith("unix:")
        port = await (self._start_clear() if is_clear else self._start_with())
        if not port:
            raise ConfigError(
                f"MindSpore's gRPC address {self._address} cannot be bound.",
                fix="Stop what uses it, or give another.",
                param="mindspore.grpc_port",
            )
        if not self._address.startswith("unix:"):
            self._address = f"{self._address.rpartition(':')[0]}:{port}"

    async def _start_clear(self) -> int:
        server, service = Http2Server(self._max_message_bytes), _Service(self._dispatcher)
        server.add_streaming(f"/{SERVICE}/PredictStream", service.answer_stream)
        server.add_generic_rpc_handlers((_handlers(service),))
        host, _, port = self._address.rpartition(":")
        try:
            taken = await server.start(host.strip("[]"), int(port))
        except (OSError, ValueError, OverflowError):  # no address of ours, or none at all
            return 0
        self._server = server
        return taken

    async def _start_with(self) -> int:
        """With TLS or on a socket of the file system, gRPC's own server."""
        server = grpc.aio.server(
            options=[
                ("grpc.max_send_message_length", self._max_message_bytes),
                ("grpc.max_receive_message_length", self._max_message_bytes),
                ("grpc.so_reuseport", 0),
            ]
        )
        server.add_generic_rpc_handlers((_handlers(_Service(self._dispatcher)),))
        port = bind(server, self._address, self._tls)
        if not port:
            await server.stop(None)
            return 0
        await server.start()
        self._server = server
        return port

    async def drain(self, seconds: float) -> None:
        """Refuses new calls and waits for those that run."""
        self._dispatcher.draining = True
        if self._server is not None:
            await self._server.stop(seconds)

    async def stop(self) -> None:
        """Cuts off what runs."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(0)


def _handlers(service: _Service) -> grpc.GenericRpcHandler:
    # Requests stay bytes: what cannot be read is our answer to give, gRPC would log each with a traceback.
    read, write = None, pb.PredictReply.SerializeToString
    return grpc.method_handlers_generic_handler(
        SERVICE,
        {
            "Predict": grpc.unary_unary_rpc_method_handler(service.predict, read, write),
            "PredictStream": grpc.unary_stream_rpc_method_handler(service.predict_stream, read, None),
        },
    )


class _Service:
    def __init__(self, dispatcher: Dispatcher) -> None:
        self._dispatcher = dispatcher

    async def predict(self, data: bytes, context: _Context) -> pb.PredictReply:
        request = await _parse(data, context)
        try:
            results = await self._dispatcher.predict(read_request(request))
            return write_reply(request, results)
        except CallError as error:
            return write_failure(request, error)
        except asyncio.CancelledError:
            raise
        except Exception:
            return _internal(request)

    async def predict_stream(self, data: bytes, context: _Context) -> AsyncIterator[bytes]:
        request = await _parse(data, context)
        unread = Unread()
        async with aclosing(unread.read(self._pour(request, unread))) as replies:
            async for reply in replies:
                yield reply

    async def answer_stream(self, call: ServerCall, messages: AsyncIterator[bytes | memoryview]) -> None:
        """Answers a stream on our own server."""
        async for data in messages:
            try:
                request = pb.PredictRequest.FromString(bytes(data))
            except DecodeError:
                call.end(grpc.StatusCode.INTERNAL.value[0], _NO_REQUEST)
            else:
                await self._pour(request, call)
            return
        call.end(grpc.StatusCode.INTERNAL.value[0], _NO_REQUEST)

    async def _pour(self, request: pb.PredictRequest, outlet: Outlet) -> None:
        replies = ReplyWriter(request)

        def write(result: Result | Text) -> None:
            outlet.send(replies.write(result))
            if isinstance(result, Failure):
                raise _FailedError

        try:
            await self._dispatcher.pour(read_request(request), write, outlet)
        except _FailedError:
            return
        except CallError as error:
            outlet.send(write_failure(request, error).SerializeToString())
        except ConnectionResetError:  # the client is gone
            raise
        except Exception:
            outlet.send(_internal(request).SerializeToString())


class _FailedError(Exception):
    """A failure was written; nothing follows it."""


async def _parse(data: bytes, context: _Context) -> pb.PredictRequest:
    try:
        return pb.PredictRequest.FromString(data)
    except DecodeError:
        await context.abort(grpc.StatusCode.INTERNAL, _NO_REQUEST)
        raise


def _internal(request: pb.PredictRequest) -> pb.PredictReply:
    _log.exception("a MindSpore gRPC call failed")
    return write_failure(request, CallError(SYSTEM_ERROR, "Predict failed"))

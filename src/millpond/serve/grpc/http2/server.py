"""`Http2Server`: generic handlers of gRPC behind a listening socket, as `grpc.aio.Server` serves them.

Finds who answers a method, runs it, and ends all connections in good order. A method that needs no task can be added as
a plain function of a call and its message.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, NoReturn

import grpc
import grpc.aio

from millpond.serve.grpc.http2.calls import CANCELLED, UNIMPLEMENTED, UNKNOWN, Message, ServerCall
from millpond.serve.grpc.http2.connection import Http2Connection
from millpond.serve.grpc.http2.heads import CallHead, http_refusal
from millpond.serve.grpc.http2.large_message import Place
from millpond.serve.sweeping import sweep

Direct = Callable[[ServerCall, Message], object]
Streaming = Callable[[ServerCall, AsyncIterator[Message]], Coroutine[Any, Any, None]]
_BACKLOG = 2048
_MAX_CONNECTIONS = 8192
_READ_BYTES = 64 << 10
_log = logging.getLogger("millpond.serve.grpc")


class CallContext:
    """What a handler is told of its call: the part of `grpc.aio.ServicerContext` that ours use."""

    def __init__(self, call: ServerCall) -> None:
        self._call = call

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        """Returns what the client sent beside the message."""
        return self._call.head.metadata

    async def abort(self, code: grpc.StatusCode, details: str = "") -> NoReturn:
        """Ends the call with an error.

        Raises:
            grpc.aio.AbortError: Always.
        """
        self._call.end(code.value[0], details)
        raise grpc.aio.AbortError(details)


@dataclass(frozen=True, slots=True)
class _Details:
    """What is asked of a generic handler; a `grpc.HandlerCallDetails`."""

    method: str
    invocation_metadata: Sequence[tuple[str, str]] = ()


class Http2Server:
    """Serves gRPC in the clear.

    Args:
        max_message_bytes: Of a request.
    """

    def __init__(self, max_message_bytes: int) -> None:
        self.max_bytes = max_message_bytes
        self._generic: list[grpc.GenericRpcHandler] = []
        self._direct: dict[str, Direct] = {}
        self._streaming: dict[str, Streaming] = {}
        self._places: dict[str, Place] = {}
        self.read_buffer = memoryview(bytearray(_READ_BYTES))  # of all connections, one at a time
        self._connections: set[Http2Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._checks: asyncio.Task[None] | None = None
        self._is_draining = False

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """Adds handlers; the first that knows a method answers it."""
        self._generic.extend(handlers)

    def add_direct(self, path: str, answer: Direct, place: Place | None = None) -> None:
        """Adds a method of one message that is answered without a task; it must not raise.

        Args:
            path: Of the method.
            answer: Takes a call and its message.
            place: Knows where large messages are wanted.
        """
        self._direct[path] = answer
        if place is not None:
            self._places[path] = place

    def add_streaming(self, path: str, answer: Streaming) -> None:
        """Adds a method whose answer is written to its call, piece by piece.

        Args:
            path: Of the method.
            answer: Takes a call and its messages; the call ends with it.
        """
        self._streaming[path] = answer

    async def start(self, host: str, port: int) -> int:
        """Listens, and returns the port that was taken.

        Raises:
            OSError: The address cannot be had.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Http2Connection(self), host, port, backlog=_BACKLOG)
        self._checks = loop.create_task(sweep(self._check))
        taken: int = self._server.sockets[0].getsockname()[1]
        return taken

    async def stop(self, grace_s: float) -> None:
        """Takes nothing new, waits for what is open, then closes everything."""
        self._is_draining = True
        if self._server is not None:
            self._server.close()
        for connection in list(self._connections):
            connection.drain()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + grace_s
        while self._connections and loop.time() < deadline:
            await asyncio.sleep(0.02)
        for connection in list(self._connections):
            connection.abort()
        tasks = [*self._tasks, *([self._checks] if self._checks is not None else ())]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._checks = None

    def add(self, connection: Http2Connection) -> bool:
        """Takes note of a connection; False when there are too many."""
        if self._is_draining or len(self._connections) >= _MAX_CONNECTIONS:
            return False
        self._connections.add(connection)
        return True

    def discard(self, connection: Http2Connection) -> None:
        """A connection is closed."""
        self._connections.discard(connection)

    def direct_of(self, head: CallHead) -> Direct | None:
        """Returns what answers a call without a task; None when there is no such thing or it is no call."""
        return self._direct.get(head.path) if head.http_status == 200 else None

    def begin(self, connection: Http2Connection, stream: int, head: CallHead, *, ends: bool) -> None:
        """Starts to answer a call."""
        call = ServerCall.opened(connection, stream, head, self.max_bytes)
        connection.calls[stream] = call
        if head.http_status != 200:
            call.refuse(http_refusal(head.http_status))
            return
        direct, streaming = self._direct.get(head.path), self._streaming.get(head.path)
        if streaming is not None:
            self._run(call, streaming(call, call.messages()))
        elif direct is not None:
            call.on_request = direct
            call.place = self._places.get(head.path)
        else:
            handler = self._find(head.path)
            if handler is None:
                # At the end of the turn: what came with the headers is read then, so that nothing has to be reset. A
                # client that is still writing may take a reset for the end of the call, and report "cancelled".
                connection.loop.call_soon(call.end, UNIMPLEMENTED, "Method not found!")
                if ends:
                    call.take(b"", ends=True)
                return
            self._start(handler, call)
        if ends:
            call.take(b"", ends=True)

    def _find(self, path: str) -> Any:
        details: Any = _Details(path)
        return next((found for one in self._generic if (found := one.service(details)) is not None), None)

    def _start(self, handler: Any, call: ServerCall) -> None:
        if handler.request_streaming:
            self._run(call, _answer_stream(handler, call, call.messages()))
        else:
            call.on_request = lambda call, message: self._run(call, _answer_one(handler, call, message))

    def _run(self, call: ServerCall, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(_ended(call, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        call.on_gone = task.cancel

    def _check(self, now: float) -> None:
        for connection in list(self._connections):
            connection.check(now)


async def _ended(call: ServerCall, work: Coroutine[Any, Any, None]) -> None:
    """Runs an answer, and ends the call however it went."""
    try:
        await work
        call.end()
    except (grpc.aio.AbortError, ConnectionResetError):
        return
    except asyncio.CancelledError:
        call.end(CANCELLED, "The call was cancelled")
        raise
    except Exception as error:
        _log.exception("a call of %s failed", call.head.path[:200])
        call.end(UNKNOWN, f"Unexpected {type(error)}: {error}")


async def _answer_one(handler: Any, call: ServerCall, message: Message) -> None:
    request, context = _reader(handler)(message), CallContext(call)
    if handler.response_streaming:
        await _send_all(handler, call, handler.unary_stream(request, context))
    else:
        call.answer(_writer(handler)(await handler.unary_unary(request, context)))


async def _answer_stream(handler: Any, call: ServerCall, messages: AsyncIterator[Message]) -> None:
    requests, context = _read(handler, messages), CallContext(call)
    if handler.response_streaming:
        await _send_all(handler, call, handler.stream_stream(requests, context))
    else:
        call.answer(_writer(handler)(await handler.stream_unary(requests, context)))


async def _read(handler: Any, messages: AsyncIterator[Message]) -> AsyncIterator[Any]:
    async for message in messages:
        yield _reader(handler)(message)


async def _send_all(handler: Any, call: ServerCall, responses: Any) -> None:
    async with aclosing(responses) as answers:
        async for response in answers:
            call.send(_writer(handler)(response))
            await call.drained()


def _reader(handler: Any) -> Callable[[Message], Any]:
    read = handler.request_deserializer
    return bytes if read is None else lambda message: read(bytes(message))


def _writer(handler: Any) -> Callable[[Any], bytes]:
    return handler.response_serializer or bytes

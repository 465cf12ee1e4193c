"""`ModelStreamInfer`: requests of one stream run at the same time, their responses go out as they come.

A request that fails is a message with its text; the stream goes on. When the client goes away every request of the
stream is cancelled. What a client may have open, and what it may leave unread, is bounded. Responses are written to an
`Outlet` where they come about: the call itself on our own HTTP/2, a queue (`Unread`) on gRPC's server.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

from millpond.serve.grpc.kserve.infer_messages import parse_version, read_request
from millpond.serve.grpc.kserve.stream_messages import StreamWriter, write_failure
from millpond.serve.kserve.parameters import EMPTY_FINAL
from millpond.serve.kserve.server import KServe
from millpond.serve.proto import inference_pb2 as pb
from millpond.serve.room import Room
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.tracing import RequestTrace

_MAX_OPEN = 1024
_MAX_UNREAD = 64


class Outlet(Room, Protocol):
    """Where the messages of a stream go."""

    def send(self, message: bytes) -> None:
        """Sends a message, or keeps it to be sent."""
        ...


class Unread:
    """An outlet whose messages are read one by one."""

    def __init__(self) -> None:
        self._messages: deque[bytes] = deque()
        self._changed = asyncio.Event()
        self._taken = asyncio.Event()
        self._is_over = False

    @property
    def is_full(self) -> bool:
        return len(self._messages) >= _MAX_UNREAD

    async def drained(self) -> None:
        while self.is_full:
            self._taken.clear()
            await self._taken.wait()

    def send(self, message: bytes) -> None:
        self._messages.append(message)
        self._changed.set()

    def end(self) -> None:
        """No message follows."""
        self._is_over = True
        self._changed.set()

    async def read(self) -> AsyncIterator[bytes]:
        """Yields messages until the end."""
        while True:
            while self._messages:
                self._taken.set()
                yield self._messages.popleft()
            if self._is_over:
                return
            self._changed.clear()
            await self._changed.wait()


async def read_stream(server: KServe, requests: AsyncIterator[pb.ModelInferRequest]) -> AsyncGenerator[bytes, None]:
    """Yields the responses to all requests of a stream."""
    unread = Unread()
    answering = asyncio.create_task(answer_stream(server, requests, unread))
    answering.add_done_callback(lambda _: unread.end())
    try:
        async for message in unread.read():
            yield message
        await answering
    finally:
        answering.cancel()
        await asyncio.gather(answering, return_exceptions=True)


async def answer_stream(server: KServe, requests: AsyncIterator[pb.ModelInferRequest], outlet: Outlet) -> None:
    """Answers every request that comes; returns when there are no more and all are answered."""
    stream = _Stream(server, outlet)
    try:
        await stream.answer_all(requests)
    finally:
        await stream.close()


@contextmanager
def grpc_trace(trace: RequestTrace, began_ns: int) -> Iterator[None]:
    """Has a call traced inside; gRPC itself sends the answer after it, which nobody tells us of."""
    trace.stamp("GRPC_WAITREAD_START", began_ns)
    trace.stamp("GRPC_WAITREAD_END", time.monotonic_ns())
    try:
        yield
    finally:
        ended_ns = time.monotonic_ns()
        for name in ("INFER_RESPONSE_COMPLETE", "GRPC_SEND_START", "GRPC_SEND_END"):
            trace.stamp(name, ended_ns)
        trace.release()


class _Stream:
    def __init__(self, server: KServe, outlet: Outlet) -> None:
        self._server = server
        self._outlet = outlet
        self._places = asyncio.Semaphore(_MAX_OPEN)
        self._open: set[asyncio.Task[None]] = set()

    async def answer_all(self, requests: AsyncIterator[pb.ModelInferRequest]) -> None:
        async for message in requests:
            await self._places.acquire()
            task = asyncio.create_task(self._answer(message))
            self._open.add(task)
            task.add_done_callback(self._ended)
        if self._open:
            await asyncio.wait(set(self._open))

    async def close(self) -> None:
        """Gives up every request."""
        for task in self._open:
            task.cancel()
        await asyncio.gather(*self._open, return_exceptions=True)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._open.discard(task)
        self._places.release()

    async def _answer(self, message: pb.ModelInferRequest) -> None:
        began_ns = time.monotonic_ns()
        server, outlet = self._server, self._outlet
        traced: AbstractContextManager[None] = nullcontext()
        try:
            servable = server.servables.find(message.model_name, parse_version(message.model_version))
            request, wishes = read_request(server, message, servable)
            request.arrived_ns = began_ns
            wants_empty = bool(request.parameters.pop(EMPTY_FINAL, False))
            if server.tracing.is_on and (trace := server.tracer.sample(message.model_name)) is not None:
                request.trace, traced = trace, grpc_trace(trace, began_ns)
            writer = StreamWriter(server, servable.config, message.id, wishes, wants_empty=wants_empty)
            with traced:
                await server.pour(request, lambda response: writer.write(response, outlet.send), outlet)
        except ServableError as error:
            await outlet.drained()
            outlet.send(write_failure(message.id, error, None))

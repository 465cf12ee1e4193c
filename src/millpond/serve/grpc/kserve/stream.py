"""`ModelStreamInfer`: requests of one stream run at the same time, their responses go out as they come.

A request that fails is a message with its text; the stream goes on. When the client goes away every request of the
stream is cancelled. What a client may have open, and what it may leave unread, is bounded. Responses are written to an
`Outlet` where they come about.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AbstractContextManager, aclosing, contextmanager, nullcontext, suppress

from millpond.serve.grpc.kserve.infer_messages import parse_version, read_request
from millpond.serve.grpc.kserve.stream_messages import StreamWriter, write_failure
from millpond.serve.grpc.outlets import Outlet, Unread
from millpond.serve.kserve.parameters import EMPTY_FINAL
from millpond.serve.kserve.server import KServe
from millpond.serve.proto import inference_pb2 as pb
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.tracing import RequestTrace

_MAX_OPEN = 1024
_log = logging.getLogger("millpond.serve.kserve")


async def read_stream(server: KServe, requests: AsyncIterator[pb.ModelInferRequest]) -> AsyncGenerator[bytes, None]:
    """Yields the responses to all requests of a stream."""
    unread = Unread()
    async with aclosing(unread.read(answer_stream(server, requests, unread))) as messages:
        async for message in messages:
            yield message


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
            await self._refuse(message.id, error)
        except ConnectionResetError:  # the client is gone
            return
        except Exception:
            _log.exception("a request of a stream to %s failed", message.model_name[:200])
            await self._refuse(message.id, ServableError("internal", "Internal error; the server's log says more."))

    async def _refuse(self, request_id: str, error: ServableError) -> None:
        with suppress(ConnectionResetError):
            await self._outlet.drained()
            self._outlet.send(write_failure(request_id, error, None))

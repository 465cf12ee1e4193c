"""`ModelStreamInfer`: requests of one stream run at the same time, their responses go out as they come.

A request that fails is a message with its text; the stream goes on. When the client goes away every request of the
stream is cancelled. What a client may have open, and what it may leave unread, is bounded.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import AbstractContextManager, aclosing, contextmanager, nullcontext

from millpond.serve.grpc.kserve.infer_messages import parse_version, read_request, write_response
from millpond.serve.kserve.parameters import EMPTY_FINAL
from millpond.serve.kserve.server import KServe
from millpond.serve.proto import inference_pb2 as pb
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferResponse
from millpond.serve.servables.tracing import RequestTrace

_MAX_OPEN = 1024
_MAX_UNREAD = 64
_FINAL = "triton_final_response"


async def answer_stream(
    server: KServe, requests: AsyncIterator[pb.ModelInferRequest]
) -> AsyncGenerator[pb.ModelStreamInferResponse, None]:
    """Yields the responses to all requests of a stream."""
    stream = _Stream(server)
    reader = asyncio.create_task(stream.read(requests))
    try:
        while (message := await stream.unread.get()) is not None:
            yield message
        await reader
    finally:
        reader.cancel()
        stream.cancel()
        await asyncio.gather(reader, *stream.open, return_exceptions=True)


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
    def __init__(self, server: KServe) -> None:
        self._server = server
        self._room = asyncio.Semaphore(_MAX_OPEN)
        self.unread: asyncio.Queue[pb.ModelStreamInferResponse | None] = asyncio.Queue(_MAX_UNREAD)
        self.open: set[asyncio.Task[None]] = set()

    async def read(self, requests: AsyncIterator[pb.ModelInferRequest]) -> None:
        """Starts every request that comes, and ends the stream when there are no more and all are answered."""
        try:
            async for message in requests:
                await self._room.acquire()
                task = asyncio.create_task(self._answer(message))
                self.open.add(task)
                task.add_done_callback(self._ended)
            if self.open:
                await asyncio.wait(set(self.open))
        except Exception:
            await self.unread.put(None)  # not when cancelled: nobody reads any more
            raise
        await self.unread.put(None)

    def cancel(self) -> None:
        """Gives up every request."""
        for task in self.open:
            task.cancel()

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.open.discard(task)
        self._room.release()

    async def _answer(self, message: pb.ModelInferRequest) -> None:
        began_ns = time.monotonic_ns()
        server = self._server
        traced: AbstractContextManager[None] = nullcontext()
        try:
            servable = server.servables.find(message.model_name, parse_version(message.model_version))
            request, wishes = read_request(server, message, servable)
            request.arrived_ns = began_ns
            wants_empty = bool(request.parameters.pop(EMPTY_FINAL, False))
            config = servable.config
            if server.tracing.is_on and (trace := server.tracer.sample(message.model_name)) is not None:
                request.trace, traced = trace, grpc_trace(trace, began_ns)
            with traced:
                async with aclosing(server.stream(request)) as responses:
                    async for response in responses:
                        if response.final and not response.outputs and response.error is None and not wants_empty:
                            continue
                        if response.error is not None:
                            await self.unread.put(_failure(message, response.error, response))
                            continue
                        written = write_response(server, config, message.id, wishes, response)
                        if not response.outputs:
                            written.ClearField("model_version")  # as Triton leaves it
                        written.parameters[_FINAL].bool_param = response.final
                        await self.unread.put(pb.ModelStreamInferResponse(infer_response=written))
        except ServableError as error:
            await self.unread.put(_failure(message, error, None))


def _failure(
    message: pb.ModelInferRequest, error: ServableError, response: InferResponse | None
) -> pb.ModelStreamInferResponse:
    answer = pb.ModelStreamInferResponse(error_message=error.message)
    answer.infer_response.id = message.id
    if response is not None:
        answer.infer_response.model_name = response.model
        answer.infer_response.parameters[_FINAL].bool_param = response.final
    return answer

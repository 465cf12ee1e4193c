"""One request as its caller sees it: an asynchronous iterator of events, and the side the client fills.

A reader that stops reading costs one merged event a sequence, never a growing queue; so does a sink that is full, which
gets events without anybody having to wake up for them. Closing or dropping the iterator cancels the request. Used by
the client alone; no torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable
from typing import Protocol

import msgspec

from millpond.api.request import ErrorInfo, FinishReason, OutputEvent, Request
from millpond.base.errors import MillpondError
from millpond.inference.engine.messages import SequenceOutput
from millpond.inference.engine.output import EventBuffer, RequestText


class OutputStream(Protocol):
    """What `AsyncEngine.generate` returns: iterate it, and close it when the rest is not wanted."""

    def __aiter__(self) -> AsyncIterator[OutputEvent]: ...

    async def __anext__(self) -> OutputEvent: ...

    async def aclose(self) -> None: ...


class EventSink(Protocol):
    """Takes events in the client's own turn of the event loop, one turn a step of the engine.

    Attributes:
        is_full: True while it takes nothing: events are kept, and merged, until `RequestStream.resume`.
    """

    is_full: bool

    def take(self, event: OutputEvent) -> None:
        """Takes an event. Must not raise."""
        ...

    def refuse(self, error: MillpondError) -> None:
        """Takes what the engine says in place of all events. Must not raise."""
        ...


class Route:
    """The client's side: takes engine outputs, keeps events until they are read.

    Attributes:
        wire_id: What the engine knows the request as; never used twice, whatever ids clients choose.
        request: As it was admitted.
        is_sent: True once the engine has been told of it.
        added_s: When it was admitted.
    """

    __slots__ = ("_buffers", "_reader", "_refusal", "_sink", "_text", "added_s", "is_sent", "request", "wire_id")

    def __init__(self, wire_id: str, request: Request, text: RequestText) -> None:
        self.wire_id = wire_id
        self.request = request
        self.is_sent = False
        self.added_s = time.monotonic()
        self._text = text
        self._buffers: dict[int, EventBuffer] = {}  # in the order in which they got something
        self._refusal: MillpondError | None = None
        self._sink: EventSink | None = None
        self._reader: asyncio.Future[None] | None = None

    @property
    def is_finished(self) -> bool:
        """True when no more events will be added."""
        return self._text.is_finished

    @property
    def num_open(self) -> int:
        """Sequences that have not ended."""
        return self._text.num_open

    @property
    def time_left_s(self) -> float:
        """Seconds to the request's deadline; infinite without one."""
        deadline_s = self.request.deadline_s
        return math.inf if deadline_s is None else self.added_s + deadline_s - time.monotonic()

    def as_sent(self) -> Request:
        """Returns the request as the engine gets it: under its wire id, with the time that is left of its deadline."""
        deadline_s = None if self.request.deadline_s is None else max(self.time_left_s, 0.0)
        return msgspec.structs.replace(self.request, request_id=self.wire_id, deadline_s=deadline_s)

    def push(self, output: SequenceOutput) -> bool:
        """Takes an engine output; returns True when a stop string ended a sequence that the engine still runs."""
        event = self._text.push(output)
        if event is None:
            return False
        self._add(event)
        return isinstance(event.stop_reason, str)

    def fail(self, finish_reason: FinishReason, error: ErrorInfo) -> None:
        """Ends every open sequence with an error event."""
        for event in self._text.fail(finish_reason, error):
            self._add(event)

    def refuse(self, error: MillpondError) -> None:
        """Ends the request before it began: the reader gets an exception in place of events."""
        self._text.fail("error", ErrorInfo(error.code, error.message))
        if self._sink is not None:
            self._sink.refuse(error)
            return
        self._refusal = error
        self._wake()

    async def take(self) -> OutputEvent:
        """Returns the next event, waiting for one.

        Raises:
            StopAsyncIteration: Every event was taken.
            MillpondError: The engine refused the request.
        """
        while not self._buffers:
            if self._refusal is not None:
                refusal, self._refusal = self._refusal, None
                raise refusal
            if self.is_finished:
                raise StopAsyncIteration
            if self._reader is not None:
                raise RuntimeError("a request's events have one reader")
            self._reader = asyncio.get_running_loop().create_future()
            try:
                await self._reader
            finally:
                self._reader = None
        return self._take_kept()

    def forward(self, sink: EventSink | None) -> None:
        """Gives events to a sink from now on, the kept ones first; None keeps them again."""
        self._sink = sink
        if sink is not None and self._refusal is not None:
            refusal, self._refusal = self._refusal, None
            sink.refuse(refusal)
        self.resume()

    def resume(self) -> None:
        """Gives the sink what was kept while it was full."""
        sink = self._sink
        while sink is not None and self._buffers and not sink.is_full:
            sink.take(self._take_kept())

    def _take_kept(self) -> OutputEvent:
        index = next(iter(self._buffers))
        event = self._buffers.pop(index).take()
        assert event is not None
        return event

    def _add(self, event: OutputEvent) -> None:
        sink = self._sink
        if sink is not None and not self._buffers and not sink.is_full:
            sink.take(event)
            return
        buffer = self._buffers.get(event.index)
        if buffer is None:
            buffer = self._buffers[event.index] = EventBuffer()
        buffer.add(event)
        self._wake()

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)


class RequestStream:
    """The caller's side of a `Route`. Dropping it without closing it cancels the request too."""

    def __init__(self, route: Route, cancel: Callable[[Route], None]) -> None:
        self._route = route
        self._cancel = cancel
        self._loop = asyncio.get_running_loop()

    def __aiter__(self) -> RequestStream:
        return self

    async def __anext__(self) -> OutputEvent:
        return await self._route.take()

    def forward(self, sink: EventSink | None) -> None:
        """Gives events to a sink from now on, the kept ones first, in place of `__anext__`; None stops that."""
        self._route.forward(sink)

    def resume(self) -> None:
        """Says that the sink is not full any more."""
        self._route.resume()

    async def aclose(self) -> None:
        """Cancels what is still running and frees its blocks. Does nothing after the last event."""
        if not self._route.is_finished:
            self._cancel(self._route)

    def __del__(self) -> None:
        if not self._route.is_finished:
            with contextlib.suppress(RuntimeError):  # the loop is closed, and the engine with it
                self._loop.call_soon_threadsafe(self._cancel, self._route)

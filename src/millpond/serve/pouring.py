"""`Pouring`: from a request's events to a place that may be full, without waking anybody for an event.

Events are given on in the turn of the event loop in which a step's tokens arrive. The task of the stream sleeps until
the last of them, a failure, or a full place. Used by `generation` (text protocols) and by the back ends that put the
engine behind a servable; knows neither.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from millpond.api.request import OutputEvent
from millpond.base.errors import MillpondError
from millpond.inference.engine.stream import OutputStream, RequestStream
from millpond.serve.room import Room

Take = Callable[[OutputEvent], bool]


async def pour(stream: OutputStream, take: Take, room: Room) -> None:
    """Gives a stream's events to `take`, waiting whenever `room` is full.

    Args:
        stream: Closing it is the caller's part.
        take: Takes an event; returns whether it was the last one that is wanted.
        room: What `take` fills.

    Raises:
        MillpondError: The engine refused the request.
        Exception: Whatever `take` raised.
    """
    if isinstance(stream, RequestStream):
        await _Pouring(take, room).run(stream)
        return
    async for event in stream:
        if take(event):
            return
        if room.is_full:
            await room.drained()


class _Pouring:
    """The sink between a request and a room."""

    __slots__ = ("_error", "_is_over", "_room", "_take", "_woken", "is_full")

    def __init__(self, take: Take, room: Room) -> None:
        self.is_full = room.is_full
        self._take = take
        self._room = room
        self._is_over = False
        self._error: Exception | None = None
        self._woken = asyncio.Event()
        if self.is_full:
            self._woken.set()

    def take(self, event: OutputEvent) -> None:
        try:
            self._is_over = self._take(event)
        except Exception as error:
            self._error = error
        if self._is_over or self._error is not None or self._room.is_full:
            self.is_full = True
            self._woken.set()

    def refuse(self, error: MillpondError) -> None:
        self._error = error
        self._woken.set()

    async def run(self, stream: RequestStream) -> None:
        stream.forward(self)
        try:
            while not self._is_over and self._error is None:
                await self._woken.wait()
                self._woken.clear()
                if not self._is_over and self._error is None:
                    await self._room.drained()
                    self.is_full = False
                    stream.resume()
        finally:
            stream.forward(None)
        if self._error is not None:
            raise self._error

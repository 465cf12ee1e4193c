"""`Poured`: the sink of a call whose responses are written where they come about, as long as there is room.

What comes while there is none is kept, up to a bound, and given on later by the task that asked; it sleeps otherwise.
A back end that looks at `is_full` waits instead. Used by the registry; knows no protocol.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from millpond.serve.room import Room
from millpond.serve.servables.calls import overflow
from millpond.serve.servables.messages import InferResponse

Write = Callable[[InferResponse], None]


class Poured:
    """A sink over a writer.

    Args:
        write: Takes a response.
        room: What it fills.
        limit: Most responses kept.
    """

    __slots__ = ("_error", "_is_closed", "_is_over", "_kept", "_limit", "_room", "_woken", "_write")

    def __init__(self, write: Write, room: Room, limit: int) -> None:
        self._write = write
        self._room = room
        self._limit = limit
        self._kept: deque[InferResponse] = deque()
        self._is_closed = False  # nothing more is taken
        self._is_over = False  # the last response was written
        self._error: Exception | None = None
        self._woken = asyncio.Event()

    @property
    def is_full(self) -> bool:
        """See `Room`."""
        return bool(self._kept) or self._room.is_full

    async def drained(self) -> None:
        """See `Room`."""
        await self._room.drained()

    def respond(self, response: InferResponse) -> None:
        """See `Sink`."""
        if self._is_closed:
            return
        self._is_closed = response.final
        if not self._kept and not self._room.is_full:
            self._give(response)
            return
        if len(self._kept) >= self._limit:
            self._is_closed = True
            response = overflow(response, self._limit)
        self._kept.append(response)
        self._woken.set()

    async def run(self) -> None:
        """Returns when the last response was written.

        Raises:
            Exception: What writing raised.
        """
        while not self._is_over:
            await self._woken.wait()
            self._woken.clear()
            while self._kept and not self._is_over:
                await self._room.drained()
                self._give(self._kept.popleft())
        if self._error is not None:
            raise self._error

    def _give(self, response: InferResponse) -> None:
        try:
            self._write(response)
        except Exception as error:
            self._error = error
        if response.final or self._error is not None:
            self._is_closed = self._is_over = True
            self._kept.clear()
            self._woken.set()

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

    __slots__ = ("_emptied", "_error", "_is_closed", "_is_over", "_kept", "_limit", "_room", "_woken", "_write")

    def __init__(self, write: Write, room: Room, limit: int) -> None:
        self._write = write
        self._room = room
        self._limit = limit
        self._kept: deque[InferResponse] = deque()
        self._is_closed = False  # nothing more is taken
        self._is_over = False  # the last response was written
        self._error: Exception | None = None
        self._woken = asyncio.Event()
        self._emptied = asyncio.Event()  # nothing is kept

    @property
    def is_full(self) -> bool:
        """See `Room`. What comes after the end is dropped, so there is room for it."""
        return not self._is_closed and (bool(self._kept) or self._room.is_full)

    async def drained(self) -> None:
        """See `Room`. That the client is gone is told to who asked, who cancels the call, and not to the back end."""
        while self.is_full:
            if self._kept:  # these go first
                self._emptied.clear()
                await self._emptied.wait()
                continue
            try:
                await self._room.drained()
            except Exception as error:
                self._end(error)

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
        try:
            while not self._is_over:
                await self._woken.wait()
                self._woken.clear()
                while self._kept and not self._is_over:
                    await self._room.drained()
                    if self._kept:  # it may have ended meanwhile
                        self._give(self._kept.popleft())
                self._emptied.set()
        finally:
            self._end(self._error)
        if self._error is not None:
            raise self._error

    def _give(self, response: InferResponse) -> None:
        try:
            self._write(response)
        except Exception as error:
            self._end(error)
        if response.final:
            self._end(self._error)

    def _end(self, error: Exception | None) -> None:
        """Nothing more is written."""
        self._error = error
        self._is_closed = self._is_over = True
        self._kept.clear()
        self._woken.set()
        self._emptied.set()

"""Where the messages of a stream go: `Outlet`, which a call on our own HTTP/2 is, and `Unread` for gRPC's server."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Coroutine
from typing import Any, Protocol

from millpond.serve.room import Room

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

    async def read(self, answering: Coroutine[Any, Any, None]) -> AsyncGenerator[bytes, None]:
        """Yields messages while `answering` sends them; closing it cancels that.

        Raises:
            Exception: What `answering` raised.
        """
        task = asyncio.create_task(answering)
        task.add_done_callback(lambda _: self._changed.set())
        try:
            while True:
                while self._messages:
                    self._taken.set()
                    yield self._messages.popleft()
                if task.done():
                    task.result()
                    return
                self._changed.clear()
                await self._changed.wait()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

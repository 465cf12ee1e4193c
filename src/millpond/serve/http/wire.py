"""Which HTTP/1.1 parser reads the sockets, how much of a head it may keep, and the short way out for a stream's body.

uvicorn's parser in Python (h11) has a limit of its own; its faster one (httptools, from the `serve` extra) has none,
so a client could fill the memory with headers that never end. This adds the limit, and an ASGI extension: a `BodyPipe`
in the scope, for bodies of which every piece is too small to be worth a message. Used by `launch.py`, `port.py` (which
run uvicorn) and `stream.py` (which writes).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

from starlette.types import Scope

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

MAX_HEAD_BYTES = 64 << 10
_EXTENSION = "millpond.body"


class BodyPipe:
    """The body of one response, between its first message and its last one.

    Args:
        cycle: The response as uvicorn keeps it.
    """

    __slots__ = ("_cycle", "_flow", "_transport")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._flow = cycle.flow
        self._transport = cycle.transport

    @property
    def is_open(self) -> bool:
        """Whether pieces can be written: the head is sent and says that the body comes in chunks."""
        cycle = self._cycle
        return cycle.response_started and cycle.chunked_encoding is True and not cycle.response_complete

    @property
    def is_full(self) -> bool:
        """True while more is unsent than should be."""
        return self._flow.write_paused

    def write(self, data: bytes) -> None:
        """Sends a piece, which is not empty; does nothing once the client is gone."""
        if not self._cycle.disconnected:
            self._transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    async def drained(self) -> None:
        """Waits until it is not full, or the client is gone."""
        await self._flow.drain()

    def abort(self) -> None:
        """Closes the connection without what is unsent: a client that does not read would keep a closing one open."""
        self._transport.abort()


def body_pipe(scope: Scope) -> BodyPipe | None:
    """Returns the pipe of a response whose head was just sent; None where the server lends none."""
    pipe = scope.get("extensions", {}).get(_EXTENSION, {}).get("pipe")
    return pipe if isinstance(pipe, BodyPipe) and pipe.is_open else None


def http_protocol() -> type[asyncio.Protocol] | Literal["h11"]:
    """Returns what uvicorn shall parse with: httptools within limits, or h11 where that is not installed."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return "h11"

    class BoundedProtocol(HttpToolsProtocol):
        """httptools that gives up on a request whose head is too long, and lends its connection to streams."""

        _is_in_head = False
        _head_bytes = 0

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._is_in_head:
                self._head_bytes += len(data)
                if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                    self.send_400_response("The head of the request is too long.")

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._is_in_head = True
            self._head_bytes = 0

        def on_headers_complete(self) -> None:
            self._is_in_head = False
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if size > MAX_HEAD_BYTES:
                raise ValueError("the head of the request is too long")  # the parser makes a 400 of it
            super().on_headers_complete()
            # The application runs in a task that begins later.
            self.scope["extensions"] = {_EXTENSION: {"pipe": BodyPipe(self.cycle)}}

    return BoundedProtocol

"""Which HTTP/1.1 parser reads the sockets, how much of a head it may keep, and the short way out for a stream's body.

uvicorn's parser in Python (h11) has a limit of its own; its faster one (httptools, from the `serve` extra) has none,
so a client could fill the memory with headers that never end. This adds the limit, and an ASGI extension: a `BodyPipe`
in the scope, for bodies of which every piece is too small to be worth a message, and whose head need not go alone. Used
by `launch.py`, `port.py` (which run uvicorn) and `stream.py` (which writes).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Literal

from starlette.types import Message, Scope, Send

if TYPE_CHECKING:
    from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

MAX_HEAD_BYTES = 64 << 10
_EXTENSION = "millpond.body"


class BodyPipe:
    """One response, until its last message.

    Args:
        cycle: The response as uvicorn keeps it.
    """

    __slots__ = ("_cycle", "_flow", "_head", "_transport")

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._flow = cycle.flow
        self._transport = cycle.transport
        self._head = b""  # which waits for the first piece

    @property
    def is_open(self) -> bool:
        """Whether pieces can be written: the head is sent and says that the body comes in chunks."""
        cycle = self._cycle
        return cycle.response_started and cycle.chunked_encoding is True and not cycle.response_complete

    @property
    def is_full(self) -> bool:
        """True while more is unsent than should be."""
        return self._flow.write_paused

    async def begin(self, send: Send, head: Message) -> None:
        """Sends the first message, whose bytes wait for the first piece or for `flush`.

        A client that reads the head alone wakes up beside the model, and may take the processor of whoever was about to
        write the first token.
        """
        keeper = _Keeper()
        self._cycle.transport = keeper
        try:
            await send(head)
        finally:
            self._cycle.transport = self._transport
        self._head = keeper.data

    def flush(self) -> None:
        """Sends the head if it still waits."""
        head, self._head = self._head, b""
        if head and not self._cycle.disconnected:
            self._transport.write(head)

    def write(self, data: bytes) -> None:
        """Sends a piece, which is not empty; does nothing once the client is gone."""
        if not self._cycle.disconnected:
            head, self._head = self._head, b""
            self._transport.write(b"%b%x\r\n%b\r\n" % (head, len(data), data))

    async def drained(self) -> None:
        """Waits until it is not full, or the client is gone."""
        await self._flow.drain()

    def abort(self) -> None:
        """Closes the connection without what is unsent: a client that does not read would keep a closing one open."""
        self._transport.abort()


class _Keeper(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.data = b""

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.data += data


async def begin_response(scope: Scope, send: Send, head: Message, *, has_piece: bool) -> BodyPipe | None:
    """Sends the first message of a response and returns its pipe; None where the server lends none.

    Args:
        scope: The request's.
        send: Its way for messages.
        head: The message.
        has_piece: The first piece is there: the head goes with it.
    """
    pipe = scope.get("extensions", {}).get(_EXTENSION, {}).get("pipe")
    if not isinstance(pipe, BodyPipe):
        await send(head)
        return None
    if not has_piece:
        await send(head)
    else:
        await pipe.begin(send, head)
    if pipe.is_open:
        return pipe
    pipe.flush()
    return None


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

"""`Exchange`: one request on a connection, and the one way to answer it.

A handler answers at once, later, or piece by piece; whoever works for the answer hears when nobody waits for it any
more. Knows how a response looks on the wire, not who asks for one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from millpond.serve.kserve.raw import Buffer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from millpond.serve.http.kserve.known_heads import Head

JSON = b"application/json"
TEXT = b"text/plain"
TEXT_UTF8 = b"text/plain; charset=utf-8"
_REASONS = {
    200: b"OK",
    400: b"Bad Request",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    409: b"Conflict",
    413: b"Payload Too Large",
    415: b"Unsupported Media Type",
    417: b"Expectation Failed",
    422: b"Unprocessable Content",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    499: b"Client Closed Request",
    500: b"Internal Server Error",
    501: b"Not Implemented",
    503: b"Service Unavailable",
}


class Channel(Protocol):
    """What an exchange needs of its connection."""

    def write(self, parts: Sequence[Buffer]) -> None: ...

    def finish(self, exchange: Exchange) -> None: ...

    async def drained(self) -> None: ...

    @property
    def is_full(self) -> bool: ...


class Request(msgspec.Struct):
    """A whole request. Names of headers are in lower case; the body is as it was sent, but decompressed. Read only.

    `head` is set where the port knew the bytes before the body.
    """

    method: str
    path: str
    headers: Mapping[bytes, bytes]
    body: bytes | memoryview
    is_http10: bool
    keep_alive: bool
    began_ns: int
    head: Head | None = None


class Exchange(msgspec.Struct, eq=False):
    """One request and its response.

    Attributes:
        request: What was asked.
        closes: Whether the connection ends with it.
        on_gone: Told when the client goes before it has its answer.
        is_answered: Whether the answer was begun, or nobody waits for one.
    """

    request: Request
    _channel: Channel  # where the answer goes
    closes: bool
    on_gone: Callable[[], object] | None = None
    is_answered: bool = False
    _is_chunked: bool = False
    _task: asyncio.Task[None] | None = None

    def respond(
        self,
        status: int,
        body: Sequence[Buffer] = (),
        content_type: bytes = TEXT,
        headers: Sequence[tuple[bytes, bytes]] = (),
    ) -> None:
        """Sends the whole response. Ignored when there is one already."""
        if self.is_answered:
            return
        head = self.head(status, sum(map(len, body)), content_type, headers)
        self.respond_with([head] if self.request.method == "HEAD" else [head, *body])

    def respond_with(self, parts: Sequence[Buffer]) -> None:
        """Sends a whole response whose parts begin with what `head` returned. Ignored when there is one already."""
        if self.is_answered:
            return
        self.is_answered = True
        self.on_gone = None  # it knows the exchange: without it both go at once
        self._channel.write(parts)
        self._channel.finish(self)

    def head(self, status: int, length: int, content_type: bytes, headers: Sequence[tuple[bytes, bytes]] = ()) -> bytes:
        """Returns the head of a response with a body of a length."""
        return self._head(status, content_type, headers, b"Content-Length: %d\r\n" % length)

    def begin(self, status: int, content_type: bytes, first: bytes = b"") -> None:
        """Sends the head of a response whose body comes piece by piece: `first` with it, then `send` and `end`."""
        if self.is_answered:
            return
        self.is_answered = True
        self._is_chunked = not self.request.is_http10
        if not self._is_chunked:
            self.closes = True
        head = self._head(status, content_type, (), b"Transfer-Encoding: chunked\r\n" if self._is_chunked else b"")
        self._channel.write([head, self._piece(first)] if first else [head])

    async def send(self, data: bytes) -> None:
        """Sends a piece and waits until the client has taken most of what was sent."""
        if data:
            self.write(data)
            await self._channel.drained()

    def write(self, data: bytes) -> None:
        """Sends a piece, which is not empty, of a response that was begun."""
        self._channel.write([self._piece(data)])

    def _piece(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if self._is_chunked else data

    @property
    def is_full(self) -> bool:
        """Whether the client has left too much unread; with `drained` this is a `Room`."""
        return self._channel.is_full

    async def drained(self) -> None:
        """Waits until the client has taken most of what was sent.

        Raises:
            ConnectionResetError: The client is gone.
        """
        await self._channel.drained()

    def end(self) -> None:
        """Ends a response that was begun."""
        self.on_gone = None
        if self._is_chunked:
            self._channel.write([b"0\r\n\r\n"])
        self._channel.finish(self)

    def cut_off(self) -> None:
        """Gives up a response that was begun: the connection is closed before its end."""
        self.on_gone = None
        self._channel.finish(self)

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Lets a coroutine answer; it is cancelled when nobody waits any more."""
        self._task = asyncio.get_running_loop().create_task(work)
        self.on_gone = self._task.cancel

    def gone(self) -> None:
        """The client went away."""
        self.is_answered = True
        on_gone, self.on_gone = self.on_gone, None
        if on_gone is not None:
            on_gone()

    def _head(self, status: int, content_type: bytes, headers: Sequence[tuple[bytes, bytes]], framing: bytes) -> bytes:
        parts = [b"HTTP/1.1 %d %s\r\nContent-Type: %s\r\n" % (status, _REASONS.get(status, b"Error"), content_type)]
        parts.extend(b"%s: %s\r\n" % header for header in headers)
        if self.closes:
            parts.append(b"Connection: close\r\n")
        elif self.request.is_http10:
            parts.append(b"Connection: keep-alive\r\n")
        parts.append(framing)
        parts.append(b"\r\n")
        return b"".join(parts)

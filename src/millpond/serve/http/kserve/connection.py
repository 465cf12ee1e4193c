"""`HttpConnection`: HTTP/1.1 from a socket's bytes to an `Exchange`, and back.

Parsing is httptools', but for heads that the port knows and bodies that come in pieces: those are read from the socket
into the one place where they stay. Owns what a client may cost: sizes of head and body, how slowly it may send or read,
how many requests it may send ahead. Requests of one connection are answered one after another, in their order.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import httptools
import numpy as np

from millpond.serve.http.kserve.coding import CodingError, decompress
from millpond.serve.http.kserve.exchange import JSON, Exchange, Request
from millpond.serve.http.kserve.known_heads import Head
from millpond.serve.http.kserve.limits import HttpLimits
from millpond.serve.kserve.raw import Buffer
from millpond.serve.prompt_writer import PromptWriter

_MAX_HEAD_BYTES = 64 << 10
_MAX_HEADERS = 128
_MAX_AHEAD = 16
_KEEP_ALIVE_S = 75.0
_HEAD_S = 15.0
_BODY_S = 30.0
_BODY_BYTES_PER_S = 64 << 10  # a large body may take longer, as long as it comes at least so fast
_SEND_S = 30.0
_HIGH_WATER = 1 << 20
_MAX_CONNECTIONS = 8192


class HttpConnection(asyncio.BufferedProtocol):
    """One client.

    Args:
        limits: Of the port.
        connections: The port's set of open connections; it puts itself in and out.
    """

    def __init__(self, limits: HttpLimits, connections: set[HttpConnection]) -> None:
        self._limits = limits
        self._connections = connections
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._writer: PromptWriter = cast(PromptWriter, None)
        self._parser: Any = httptools.HttpRequestParser(self)
        self._read_view = memoryview(limits.read_buffer)
        self._rest: memoryview | None = None  # of a body that is read into its own place
        self._whole: memoryview = memoryview(b"")
        self._known: Head | None = None  # of the body that is coming
        self._last_head: Head | None = None  # which this client most likely sends again
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[Exchange] = deque()
        self._active: Exchange | None = None
        self._is_dispatching = False
        self._is_deaf = False  # nothing the client sends counts any more
        self._is_reading_paused = False
        self._writable: asyncio.Future[None] | None = None
        self._is_write_paused = False
        self._deadline = self._loop.time() + _HEAD_S
        self._write_deadline = 0.0
        self._in_head = True
        self._head_bytes = 0
        self._num_parsed = 0
        self._begin()

    def _begin(self) -> None:
        self._url = b""
        self._headers: dict[bytes, bytes] = {}  # not changed once it is whole
        self._num_headers = 0
        self._body: list[bytes] = []
        self._body_bytes = 0
        self._began_ns = 0
        self._is_idle = True
        self._method = self._path = ""
        self._expected = 0
        self._has_length = self._is_http10 = self._keeps_alive = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=_HIGH_WATER)
        self._writer = PromptWriter(self._transport)
        if len(self._connections) >= _MAX_CONNECTIONS:
            self._is_deaf = True
            self._transport.abort()
        else:
            self._connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._connections.discard(self)
        self._is_deaf = True
        # The parser knows its connection, so that a half-read body would keep its place until cycles are looked for.
        self._parser = None
        self._whole, self._rest, self._body = memoryview(b""), None, []
        self._waiting.clear()
        active, self._active = self._active, None
        if active is not None:
            self._limits.num_busy -= 1
            active.gone()
        if self._writable is not None and not self._writable.done():
            self._writable.set_exception(ConnectionResetError())
            self._writable.exception()  # nobody may be waiting

    def get_buffer(self, sizehint: int) -> memoryview:
        """Tells where the next bytes go."""
        return self._read_view if self._rest is None else self._rest

    def buffer_updated(self, nbytes: int) -> None:
        """Takes in the bytes that are there now."""
        if self._is_deaf:
            return
        if self._rest is not None:
            self._rest = self._rest[nbytes:]
            if not self._rest:
                self._end_body()
            return
        if self._is_idle:
            head, data = self._last_head, self._limits.read_buffer
            if head is None or nbytes < head.size or not data.startswith(head.raw):
                head = self._last_head = self._limits.heads.find(data, nbytes)
            if head is not None and nbytes <= head.size + head.body_bytes:
                self._take_known(head, nbytes)
                return
        self._parse(self._read_view[:nbytes])

    def _take_known(self, head: Head, size: int) -> None:
        """Takes a request, or its first part, whose head was parsed before."""
        self._began_ns = time.monotonic_ns()
        self._known = head
        if size == head.size + head.body_bytes:
            self._accept_known(head, bytes(self._read_view[head.size : size]))
            return
        self._is_idle = self._in_head = False
        self._deadline = self._loop.time() + _BODY_S + head.body_bytes / _BODY_BYTES_PER_S
        place = None if head.place is None else head.place(head.body_bytes)
        self._begin_body(self._read_view[head.size : size], head.body_bytes, place)

    def _begin_body(self, first: memoryview, expected: int, place: memoryview | None = None) -> None:
        """Has the rest of a body read into its place, which takes memory only as bytes come."""
        self._whole = whole = np.empty(expected, np.uint8).data if place is None else place
        whole[: len(first)] = first
        self._rest = whole[len(first) :]

    def _end_body(self) -> None:
        body, self._whole, self._rest = self._whole, memoryview(b""), None
        if self._known is not None:
            self._accept_known(self._known, body)
        else:
            self._accept(body)

    def _accept_known(self, head: Head, body: bytes | memoryview) -> None:
        """Answers a whole request whose head was parsed before; there is nothing unusual in it."""
        self._is_idle = self._in_head = True
        self._head_bytes = 0
        keeps_alive = not self._limits.is_draining
        request = Request(head.method, head.path, head.headers, body, False, keeps_alive, self._began_ns, head)
        exchange = Exchange(request, self, not keeps_alive)
        if self._active is None and not self._waiting and not (self._is_write_paused or self._is_dispatching):
            self._active = exchange
            self._limits.num_busy += 1
            self._limits.handle(exchange)
        else:
            self._wait_in_line(exchange)

    def _parse(self, data: memoryview) -> None:
        was_idle = self._is_idle
        if was_idle:
            self._is_idle = False
            self._deadline = self._loop.time() + _HEAD_S
        if self._in_head:
            self._head_bytes += len(data)
        self._num_parsed = 0
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._is_deaf = True  # the request itself is answered; what follows is in another protocol
        except httptools.HttpParserError:
            self._refuse(400, "Bad Request")
        if self._in_head and self._head_bytes > _MAX_HEAD_BYTES:
            self._refuse(431, f"The head of a request may have {_MAX_HEAD_BYTES} bytes")
        if was_idle and not self._is_deaf and self._has_length:
            self._learn(data)
        if not self._in_head and self._has_length and not self._is_deaf:
            # The parser would copy every piece: it is left where it is, and a new one reads the next head.
            self._parser = httptools.HttpRequestParser(self)
            first, self._body = b"".join(self._body), []
            self._begin_body(memoryview(first), self._expected)

    def _learn(self, data: memoryview) -> None:
        """Remembers the head of a request that these bytes began with and that nothing followed."""
        is_whole = self._is_idle and self._num_parsed == 1 and self._body_bytes == self._expected
        is_begun = not self._in_head and not self._num_parsed
        if (is_whole or is_begun) and self._keeps_alive and not self._is_http10:
            self._limits.heads.learn(
                data, self._body_bytes, method=self._method, path=self._path, headers=self._headers
            )

    def _pause_when_full(self) -> None:
        if len(self._waiting) >= _MAX_AHEAD and not self._is_reading_paused:
            self._is_reading_paused = True
            self._transport.pause_reading()

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._is_write_paused = True
        self._write_deadline = self._loop.time() + _SEND_S

    def resume_writing(self) -> None:
        self._is_write_paused = False
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._dispatch()

    def on_message_begin(self) -> None:
        self._begin()
        self._known = None
        self._is_idle = False
        self._began_ns = time.monotonic_ns()

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._num_headers += 1
        if self._num_headers > _MAX_HEADERS:
            self._refuse(431, f"A request may have {_MAX_HEADERS} headers")
            return
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._in_head = False
        headers = self._headers
        length = headers.get(b"content-length", b"")
        self._expected = expected = int(length) if length.isdigit() else 0
        if expected > self._limits.max_body_bytes:
            self._refuse_size()
            return
        is_coded = b"transfer-encoding" in headers
        if expected or is_coded:
            self._deadline = self._loop.time() + _BODY_S + expected / _BODY_BYTES_PER_S
        self._has_length = expected > 0 and not is_coded and b"upgrade" not in headers
        self._method = self._parser.get_method().decode("ascii")
        self._is_http10 = self._parser.get_http_version() == "1.0"
        self._keeps_alive = self._parser.should_keep_alive()
        try:
            self._path = self._url.partition(b"?")[0].decode("ascii")
        except UnicodeDecodeError:
            self._refuse(400, "Bad Request")
            return
        expect = headers.get(b"expect")
        if expect is not None and self._active is None and not self._waiting and not self._is_deaf:
            if expect.lower() == b"100-continue":
                self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            else:
                self._refuse(417, "Expectation Failed")

    def on_body(self, data: bytes) -> None:
        self._body_bytes += len(data)
        if self._body_bytes > self._limits.max_body_bytes:
            self._refuse_size()
        if not self._is_deaf:
            self._body.append(data)

    def on_message_complete(self) -> None:
        if self._is_deaf:
            return
        self._num_parsed += 1
        body = self._body[0] if len(self._body) == 1 else b"".join(self._body)
        self._body = []
        self._accept(body)

    def _accept(self, body: bytes | memoryview) -> None:
        """Answers a whole request, when those before it are."""
        self._in_head = True
        self._head_bytes = 0
        coding = self._headers.get(b"content-encoding")
        if coding is not None and (body or self._method == "POST"):
            try:
                body = decompress(coding, body, self._limits.max_body_bytes)
            except CodingError as error:
                self._refuse(415 if error.status == 501 and self._limits.is_strict else error.status, str(error))
                return
        request = Request(
            self._method,
            self._path,
            self._headers,
            body,
            self._is_http10,
            self._keeps_alive and not self._limits.is_draining,
            self._began_ns,
        )
        self._is_idle = True
        self._wait_in_line(Exchange(request, self, not request.keep_alive))

    def _wait_in_line(self, exchange: Exchange) -> None:
        self._deadline = self._loop.time() + _KEEP_ALIVE_S
        self._waiting.append(exchange)
        self._dispatch()
        self._pause_when_full()

    def write(self, parts: Sequence[Buffer]) -> None:
        """Sends bytes; part of `Channel`."""
        self._writer.write(parts)

    @property
    def is_full(self) -> bool:
        """Whether more than enough is unsent; part of `Channel`."""
        return self._is_write_paused

    async def drained(self) -> None:
        """Waits while more than enough is unsent; part of `Channel`.

        Raises:
            ConnectionResetError: The client is gone.
        """
        while self._is_write_paused:
            if self._writable is None or self._writable.done():
                self._writable = self._loop.create_future()
            await asyncio.shield(self._writable)  # another may wait too

    def finish(self, exchange: Exchange) -> None:
        """The active exchange has its response; part of `Channel`."""
        if exchange is not self._active:
            return
        self._active = None
        self._limits.num_busy -= 1
        self._deadline = self._loop.time() + (_KEEP_ALIVE_S if self._is_idle else _HEAD_S)
        if exchange.closes or self._limits.is_draining:
            self._is_deaf = True
            self._waiting.clear()
            self._transport.close()
        elif self._waiting or self._is_reading_paused:
            self._dispatch()

    def check(self, now: float) -> None:
        """Cuts off a client that is too slow; called every second."""
        if self._is_write_paused and now > self._write_deadline:
            self._transport.abort()
        elif self._active is None and not self._waiting and now > self._deadline:
            if self._is_idle or self._is_deaf:
                self._transport.close()
            else:
                self._refuse(408, "Request Timeout")

    def close_idle(self) -> None:
        """Closes the connection unless a request is being answered or received."""
        if self._active is None and not self._waiting and self._is_idle:
            self._transport.close()

    def abort(self) -> None:
        """Closes the connection, whatever is going on."""
        self._transport.abort()

    def _dispatch(self) -> None:
        if self._is_dispatching:
            return
        self._is_dispatching = True
        try:
            while self._waiting and self._active is None and not self._is_write_paused:
                self._active = self._waiting.popleft()
                self._limits.num_busy += 1
                self._limits.handle(self._active)
        finally:
            self._is_dispatching = False
        if self._is_reading_paused and len(self._waiting) < _MAX_AHEAD // 2:
            self._is_reading_paused = False
            self._transport.resume_reading()

    def _refuse(self, status: int, text: str) -> None:
        """Answers what cannot be a request, after those before it, and hears nothing more."""
        if self._is_deaf:
            return
        self._is_deaf = True
        self._body = []
        self._whole, self._rest = memoryview(b""), None
        request = Request("", "", {}, b"", is_http10=False, keep_alive=False, began_ns=self._began_ns)
        exchange = Exchange(request, self, not request.keep_alive)
        body = self._limits.refuse(text)
        if self._active is None and not self._waiting:
            self._active = exchange
            self._limits.num_busy += 1
            exchange.respond(status, [body], JSON)
        else:
            # NOTE: those before it are still being answered; a broken client gets only the end of the connection.
            for waiting in [self._active, *self._waiting]:
                if waiting is not None:
                    waiting.closes = True

    def _refuse_size(self) -> None:
        self._refuse(413, f"The body of a request may have {self._limits.max_body_bytes} bytes")

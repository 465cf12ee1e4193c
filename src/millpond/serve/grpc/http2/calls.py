"""`ServerCall`: one call on a stream: its messages in, its answer out, its deadline and its end.

Knows gRPC's framing of messages and the windows of HTTP/2; not who answers, nor how a connection is read.
"""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING

import msgspec

from millpond.serve.grpc.http2 import frames
from millpond.serve.grpc.http2.frames import HEAD, frame
from millpond.serve.grpc.http2.heads import ANSWER, TRAILERS_OK, CallHead, refusal, trailers
from millpond.serve.grpc.http2.large_message import LARGE, LargeMessage, Place

if TYPE_CHECKING:
    from millpond.serve.grpc.http2.connection import Http2Connection
    from millpond.serve.grpc.http2.server import Direct

Message = bytes | memoryview
_PREFIX = 5
_CREDIT = 1 << 20  # so many bytes are taken before the client hears that it may send more
_MAX_UNREAD = 64  # messages of a stream, before the client has to wait
_MAX_UNSENT = 1 << 16
_LARGE = 1 << 16
_SMALL = 1 << 12  # messages that go out together with those of other calls
_DATA_HEAD = struct.Struct(">BHBB").pack  # the head of a frame, but for its stream
_MESSAGE_HEAD = struct.Struct(">BI").pack  # whether it is packed, its length
_ANSWER_HEAD = _DATA_HEAD(0, len(ANSWER), frames.HEADERS, frames.END_HEADERS)
_END_HEAD = _DATA_HEAD(0, len(TRAILERS_OK), frames.HEADERS, frames.END_HEADERS | frames.END_STREAM)
_BYTES_PER_S = 64 << 10  # that a client sends at least of a message it has begun
CANCELLED, UNKNOWN, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNIMPLEMENTED, INTERNAL = 1, 2, 4, 8, 12, 13


class ServerCall(msgspec.Struct, eq=False):
    """One call.

    Attributes:
        head: What its headers say.
        window: What the client takes on this stream.
        credit: What the client may still send on it.
        on_request: Told the one message of a call that has one, once it is whole; None where messages are read.
        place: Knows where large messages are wanted; None for anywhere.
        on_gone: Told when nobody waits for the answer any more.
        is_over: Whether there is nothing more to say.
    """

    _connection: Http2Connection
    _stream: int
    head: CallHead
    _max_bytes: int
    window: int
    _touched: float
    _has_read: bool  # the client sends no more
    credit: int = frames.STREAM_WINDOW
    on_request: Direct | None = None
    place: Place | None = None
    on_gone: Callable[[], object] | None = None
    is_over: bool = False
    _parts: list[bytes | memoryview] = []
    _size: int = 0
    _large: LargeMessage | None = None
    _length: int = -1  # of the message that is coming; -1 before it is known
    _is_packed: bool = False
    _owed: int = 0  # bytes that were taken and not yet granted again
    _messages: deque[Message] = msgspec.field(default_factory=deque)
    _arrived: asyncio.Future[None] | None = None
    _has_begun: bool = False  # the headers of the answer are out
    _unsent: deque[memoryview] = msgspec.field(default_factory=deque)
    _unsent_bytes: int = 0
    _final: bytes | None = None  # the trailers, once the answer is complete
    _room: asyncio.Future[None] | None = None
    _deadline: asyncio.TimerHandle | None = None

    @classmethod
    def opened(
        cls, connection: Http2Connection, stream: int, head: CallHead, max_bytes: int, *, has_read: bool = False
    ) -> ServerCall:
        """Returns a new call.

        Args:
            connection: Its own.
            stream: Its number there.
            head: What its headers say.
            max_bytes: Of a message.
            has_read: Whether the whole request is there already.
        """
        loop = connection.loop
        call = cls(connection, stream, head, max_bytes, connection.first_window, loop.time(), has_read)
        if head.timeout_s is not None:
            call._deadline = loop.call_later(head.timeout_s, call._expire)
        return call

    def take(self, data: bytes | memoryview, *, ends: bool) -> None:
        """Takes in what the client sent on the stream."""
        if self.is_over:
            return
        if data:
            self._count(len(data))
            if self._large is not None:
                self._size += self._large.take(data)
                self._end_of_large()
            else:
                self._parts.append(data)
                self._size += len(data)
                if self._size >= (self._length if self._length >= 0 else _PREFIX):
                    self._cut()
            if self._owed >= _CREDIT and not ends and len(self._messages) < _MAX_UNREAD:
                self._grant()
        self._look_at_end(ends=ends)

    def room(self) -> memoryview | None:
        """Returns where the next bytes of a large message go; None when they are to be given to `take`."""
        return None if self._large is None or self.is_over else self._large.room()

    def took(self, size: int, *, ends: bool) -> None:
        """Takes in what was written into the room."""
        if self.is_over or self._large is None:
            return
        self._count(size)
        self._large.took(size)
        self._end_of_large()
        if self._owed >= _CREDIT and not ends:
            self._grant()
        self._look_at_end(ends=ends)

    def _count(self, size: int) -> None:
        now = self._connection.loop.time()
        # Within a message every byte buys a little time, so that one cannot be sent as slowly as one likes.
        is_within = self._size or self._length >= 0
        self._touched = min(now, self._touched + size / _BYTES_PER_S) if is_within else now
        self._owed += size

    def _end_of_large(self) -> None:
        if self._large is not None and self._large.is_whole:
            self._messages.append(self._large.data)
            self._large, self._length = None, -1
            self._connection.idle.forget()

    def _look_at_end(self, *, ends: bool) -> None:
        if ends and not self.is_over:
            self._has_read = True
            self._end_of_request()
        elif self._arrived is not None and not self._arrived.done() and self._messages:
            self._arrived.set_result(None)

    async def messages(self) -> AsyncIterator[Message]:
        """Yields the messages of a call that may have many, as they come."""
        while True:
            while self._messages:
                message = self._messages.popleft()
                if self._owed >= _CREDIT and not self._has_read and len(self._messages) < _MAX_UNREAD // 2:
                    self._grant()
                yield message
            if self._has_read or self.is_over:
                return
            self._arrived = self._connection.loop.create_future()
            await self._arrived

    def answer(self, *parts: bytes | bytearray | memoryview) -> None:
        """Sends the one message of an answer, and ends the call."""
        if self.is_over:
            return
        connection, length = self._connection, sum(map(len, parts))
        size = length + _PREFIX
        fits = size <= min(connection.window, self.window, connection.frame_size, _LARGE)
        if not fits or connection.is_paused or self._has_begun:
            self.send(b"".join(parts))
            self.end()
            return
        connection.window -= size
        stream = self._stream.to_bytes(4, "big")
        data, prefix = _DATA_HEAD(size >> 16, size & 0xFFFF, frames.DATA, 0), _MESSAGE_HEAD(0, length)
        connection.write_now(
            b"".join((_ANSWER_HEAD, stream, ANSWER, data, stream, prefix, *parts, _END_HEAD, stream, TRAILERS_OK))
        )
        self._close()

    def send(self, message: bytes) -> None:
        """Sends a message of an answer."""
        if self.is_over:
            return
        self._begin_answer()
        connection, size = self._connection, len(message) + _PREFIX
        fits = size <= min(connection.window, self.window, connection.frame_size, _SMALL)
        if fits and not (self._unsent or connection.is_paused):
            connection.window -= size
            self.window -= size
            self._touched = self._connection.loop.time()
            prefix = len(message).to_bytes(4, "big")
            head = HEAD.pack(size >> 16, size & 0xFFFF, frames.DATA, 0, self._stream)
            connection.write_now(b"".join((head, b"\0", prefix, message)))
            return
        self._unsent.append(memoryview(b"\0" + len(message).to_bytes(4, "big")))
        if message:
            self._unsent.append(memoryview(message))
        self._unsent_bytes += _PREFIX + len(message)
        self.write_more()

    @property
    def is_full(self) -> bool:
        """Whether more than enough is unsent; with `drained` this is a `Room`."""
        return self._unsent_bytes > _MAX_UNSENT

    async def drained(self) -> None:
        """Waits while more than enough is unsent.

        Raises:
            ConnectionResetError: Nobody waits for the answer any more.
        """
        while self._unsent_bytes > _MAX_UNSENT:
            if self._room is None or self._room.done():
                self._room = self._connection.loop.create_future()
            await asyncio.shield(self._room)  # others may wait too

    def end(self, code: int = 0, details: str = "") -> None:
        """Ends the answer with a status."""
        if self.is_over or self._final is not None:
            return
        if not self._has_begun:
            block = refusal(code, details) if code else ANSWER + TRAILERS_OK
            self._finish(block)
            return
        self._final = trailers(code, details) if code else TRAILERS_OK
        self.write_more()

    def refuse(self, block: bytes) -> None:
        """Answers what is no call."""
        self._finish(block)

    def write_more(self) -> None:
        """Sends what the client's windows take."""
        connection = self._connection
        parts: list[bytes | memoryview] = []
        while self._unsent and not connection.is_paused:
            size = min(self._unsent_bytes, connection.window, self.window, connection.frame_size)
            if size <= 0:
                break
            connection.window -= size
            self.window -= size
            self._unsent_bytes -= size
            parts.append(HEAD.pack(size >> 16, size & 0xFFFF, frames.DATA, 0, self._stream))
            while size:
                first = self._unsent[0]
                if len(first) <= size:
                    parts.append(self._unsent.popleft())
                else:
                    parts.append(first[:size])
                    self._unsent[0] = first[size:]
                size -= len(parts[-1])
        if parts:
            self._touched = self._connection.loop.time()
            connection.write_all(parts)
        connection.note(self._stream, self, waits=bool(self._unsent))
        if self._room is not None and not self._room.done() and self._unsent_bytes <= _MAX_UNSENT:
            self._room.set_result(None)
        if self._final is not None and not self._unsent:
            self._finish(self._final)

    def gone(self) -> None:
        """Nobody waits for the answer any more."""
        if self.is_over:
            return
        on_gone = self.on_gone
        self._close()
        self._unsent.clear()
        for waiter in (self._room, self._arrived):
            if waiter is not None and not waiter.done():
                waiter.set_exception(ConnectionResetError())
                waiter.exception()  # nobody may be waiting
        if on_gone is not None:
            on_gone()

    def check(self, now: float, patience_s: float) -> None:
        """Gives up a client that neither sends what it began nor takes what it asked for."""
        is_sending = not self._has_read and (self.on_request is not None or self._size > 0 or self._length >= 0)
        if (is_sending or self._unsent) and now > self._touched + patience_s:
            self._connection.reset(self._stream, frames.CANCEL)
            self.gone()

    def _cut(self) -> None:
        """Takes all whole messages off what has come."""
        whole = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        at, end = 0, len(whole)
        while not self.is_over:
            if self._length < 0:
                if end - at < _PREFIX:
                    break
                self._is_packed = bool(whole[at])
                self._length = int.from_bytes(whole[at + 1 : at + _PREFIX], "big")
                at += _PREFIX
                if self._length > self._max_bytes:
                    text = f"Received message larger than max ({self._length} vs. {self._max_bytes})"
                    self.end(RESOURCE_EXHAUSTED, text)
                    return
            if end - at < self._length:
                if self._length >= LARGE and self.on_request is not None and not self._is_packed:
                    self._large = LargeMessage(memoryview(whole)[at:end], self._length, self.place)
                    at = end
                break
            message = bytes(whole[at : at + self._length])  # no copy where it is the whole
            at += self._length
            self._length = -1
            self._connection.idle.forget()
            unpacked = self._unpacked(message) if self._is_packed else message
            if unpacked is not None:
                self._messages.append(unpacked)
        self._parts = [whole[at:]] if at < end else []
        self._size = end - at

    def _unpacked(self, message: bytes) -> bytes | None:
        if self.head.encoding not in (b"gzip", b"deflate"):
            self.end(UNIMPLEMENTED, f"Compression algorithm '{self.head.encoding.decode('latin-1')}' is not supported")
            return None
        unpacker = zlib.decompressobj(47)
        try:
            data = unpacker.decompress(message, self._max_bytes)
        except zlib.error:
            self.end(INTERNAL, "A message cannot be decompressed")
            return None
        if unpacker.unconsumed_tail:
            self.end(RESOURCE_EXHAUSTED, f"Received message larger than max ({self._max_bytes})")
            return None
        return data

    def _end_of_request(self) -> None:
        if self.on_request is None:
            if self._arrived is not None and not self._arrived.done():
                self._arrived.set_result(None)
        elif self._size or self._length >= 0 or len(self._messages) != 1:
            self.end(INTERNAL, "The request is not one whole message")
        else:
            self.on_request(self, self._messages.popleft())

    def skip(self, size: int) -> None:
        """Takes note of padding, which counts as data."""
        self._owed += size

    def _grant(self) -> None:
        self.credit += self._owed
        self._connection.open_window(self._stream, self._owed)
        self._owed = 0

    def _begin_answer(self) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._connection.write(frame(frames.HEADERS, frames.END_HEADERS, self._stream, ANSWER))

    def _finish(self, block: bytes) -> None:
        self._connection.write(frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, self._stream, block))
        if not self._has_read:
            self._connection.reset(self._stream, frames.NO_ERROR)
        self._close()
        if self._arrived is not None and not self._arrived.done():
            self._arrived.set_result(None)

    def _close(self) -> None:
        self.is_over = True
        self.on_gone = None  # it knows the call: without it both go at once
        if self._deadline is not None:
            self._deadline.cancel()
        self._connection.finish(self._stream)

    def _expire(self) -> None:
        if self.is_over:
            return
        gone, self.on_gone = self.on_gone, None
        self._unsent.clear()
        self._unsent_bytes = 0
        self.end(DEADLINE_EXCEEDED, "Deadline Exceeded")
        if gone is not None:
            gone()

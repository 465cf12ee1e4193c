"""`Http2Connection`: HTTP/2 from a socket's bytes to streams, and back (RFC 9113).

Owns frames, flow control, the table of headers, and what a client may cost: sizes, how many streams, how long it may be
silent, and how many frames it may send that ask for nothing. What a stream means is `calls`'.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, cast

from millpond.serve.grpc.http2 import frames, limits
from millpond.serve.grpc.http2.calls import ServerCall
from millpond.serve.grpc.http2.frame_writer import FrameWriter
from millpond.serve.grpc.http2.frames import Broken, frame, number, unpadded, without_priority, word
from millpond.serve.grpc.http2.heads import CallHead, read_head
from millpond.serve.grpc.http2.hpack import HeaderDecoder, HpackError
from millpond.serve.grpc.http2.idle_frames import IdleFrames
from millpond.serve.grpc.http2.known_call import KnownCall

if TYPE_CHECKING:
    from millpond.serve.grpc.http2.server import Direct, Http2Server


class Http2Connection(FrameWriter, asyncio.BufferedProtocol):
    """One client.

    Args:
        server: Answers calls, and knows all connections.
    """

    def __init__(self, server: Http2Server) -> None:
        super().__init__()
        self._server = server
        self._transport: asyncio.Transport = cast(asyncio.Transport, None)
        self._decoder: HeaderDecoder[CallHead] = HeaderDecoder(read_head)
        self._buffer = b""
        self._has_preface = False
        self._block: bytearray | None = None  # of headers that go on in the next frame
        self._block_stream = self._block_flags = 0
        self._data_left = 0  # of a frame of data whose beginning was taken
        self._data_stream = 0
        self._data_ends = False
        self._room: memoryview | None = None  # of a large message, where the rest of this frame goes
        self._last_stream = 0
        self.idle = IdleFrames()
        self._known: KnownCall | None = None  # which this client most likely makes again
        self._received = 0  # bytes of data since the client's window was opened again
        self._began = self.loop.time()
        self._blocked_since = 0.0
        self._has_settings = False
        self.calls: dict[int, ServerCall] = {}
        self._waiting: dict[int, ServerCall] = {}  # those whose answers the client's windows hold back
        self.window = frames.FIRST_WINDOW  # what the client takes on all streams
        self.first_window = frames.FIRST_WINDOW  # and on a new one
        self.frame_size = frames.LEAST_FRAME_SIZE
        self.is_closing = False
        self.is_paused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=limits.HIGH_WATER)
        self.write_to(self._transport)
        if self._server.add(self):
            self._transport.write(limits.HELLO)
        else:
            self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.discard(self)
        self.is_closing = True
        self._room, self._buffer = None, b""  # the transport knows its protocol, and goes when cycles are looked for
        calls, self.calls = self.calls, {}
        for call in calls.values():
            call.gone()
        self._waiting.clear()

    def pause_writing(self) -> None:
        self.is_paused = True
        self._blocked_since = self.loop.time()
        self._transport.pause_reading()  # who does not take answers may not ask for more of them

    def resume_writing(self) -> None:
        self.is_paused = False
        if not self._transport.is_closing():
            self._transport.resume_reading()
        self._write_more()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Tells where the next bytes go."""
        return self._server.read_buffer if self._room is None else self._room

    def buffer_updated(self, nbytes: int) -> None:
        """Takes in the bytes that are there now."""
        if self._room is None:
            data, known = bytes(self._server.read_buffer[:nbytes]), self._known
            if known is None or known.size != nbytes or not self._take_known(known, data):
                self.data_received(data)
            return
        self._data_left -= nbytes
        self._count_received(nbytes)
        if (call := self.calls.get(self._data_stream)) is not None:
            call.took(nbytes, ends=self._data_ends and not self._data_left)
        self._find_room()

    def _find_room(self) -> None:
        call = self.calls.get(self._data_stream) if self._data_left else None
        room = None if call is None else call.room()
        self._room = None if room is None else room[: self._data_left]

    def data_received(self, data: bytes) -> None:
        """Takes in bytes."""
        if self.is_closing and not self.calls:
            return
        if self._buffer:
            data = self._buffer + data
            self._buffer = b""
        try:
            self._take(data)
            if self._data_left:
                self._find_room()
        except Broken as broken:
            self._break(broken.code, str(broken))
        except HpackError as error:
            self._break(frames.COMPRESSION_ERROR, str(error))

    def write_now(self, data: bytes) -> None:
        """Sends whole frames with those before them; at once, unless other calls may have something to say too."""
        if len(self.calls) > 1:
            self.write(data)
        elif self._unsent:
            self.write_all([data])
        else:
            self._writer.write_one(data)

    def note(self, stream: int, call: ServerCall, *, waits: bool) -> None:
        """Takes note whether a call waits for the client's windows."""
        if waits:
            self._waiting[stream] = call
        else:
            self._waiting.pop(stream, None)

    def finish(self, stream: int) -> None:
        """A call is over."""
        self.calls.pop(stream, None)
        self._waiting.pop(stream, None)
        if self.is_closing and not self.calls:
            self.flush()
            self._transport.close()

    def drain(self) -> None:
        """Takes no new calls; closes when the open ones are answered."""
        if not self.is_closing:
            self.is_closing = True
            self.write(frame(frames.GOAWAY, 0, 0, word(self._last_stream) + word(frames.NO_ERROR)))
        if not self.calls:
            self.flush()
            self._transport.close()

    def abort(self) -> None:
        """Closes the connection, whatever is going on."""
        self._transport.abort()

    def check(self, now: float) -> None:
        """Cuts off a client that is too slow; called every second."""
        self.idle.forgive()
        is_mute = not self._has_settings and now > self._began + limits.BEGIN_S
        if is_mute or (self.is_paused and now > self._blocked_since + limits.STALL_S):
            self._transport.abort()
        else:
            for call in list(self.calls.values()):
                call.check(now, limits.STALL_S)

    def _take(self, data: bytes) -> None:
        at, end = 0, len(data)
        if not self._has_preface:
            if not data.startswith(frames.PREFACE[:end]):
                raise Broken(frames.PROTOCOL_ERROR, "not HTTP/2")
            if end < len(frames.PREFACE):
                self._buffer = data
                return
            self._has_preface = True
            at = len(frames.PREFACE)
        unpack = frames.HEAD.unpack_from
        while at < end:
            if self._data_left:
                at = self._take_data(data, at, end)
                continue
            if end - at < frames.HEAD_BYTES:
                break
            high, low, kind, flags, stream = unpack(data, at)
            size = high << 16 | low
            stream &= 0x7FFFFFFF
            if size > (limits.MAX_FRAME if kind == frames.DATA else limits.MAX_CONTROL_FRAME):
                raise Broken(frames.FRAME_SIZE_ERROR, "a frame is larger than it may be")
            if self._block is not None and (kind != frames.CONTINUATION or stream != self._block_stream):
                raise Broken(frames.PROTOCOL_ERROR, "headers were not ended")
            if kind == frames.HEADERS and flags == frames.END_HEADERS:
                after = self._take_whole(data, at, size, stream)
                if after:
                    at = after
                    continue
            elif kind == frames.DATA and not flags & frames.PADDED:
                at += frames.HEAD_BYTES
                self._begin_data(stream, size, flags)
                continue
            if end - at < frames.HEAD_BYTES + size:
                break
            at += frames.HEAD_BYTES
            self._take_frame(kind, flags, stream, data[at : at + size])
            at += size
        if at < end:
            self._buffer = data[at:]

    def _take_whole(self, data: bytes, at: int, size: int, stream: int) -> int:
        """Takes a call whose headers and one message are here; returns where what follows begins, 0 if it is none."""
        start = at + frames.HEAD_BYTES + size
        found = frames.only_message(data, start, stream)
        if found is None or stream <= self._last_stream or not stream & 1:
            return 0
        first, end = found
        if (
            self.is_closing
            or len(self.calls) >= limits.MAX_STREAMS
            or end - first > min(self._server.max_bytes, limits.MAX_FRAME)
        ):
            return 0
        head = self._decoder.decode(data[start - size : start])
        direct = self._server.direct_of(head)
        if direct is None:
            self._open_call(stream, head, frames.END_HEADERS)
            return start
        if end - at == len(data):
            self._known = KnownCall(data, start, first, head, direct)
        self._begin_whole(stream, head, direct, data[first:end])
        return end

    def _take_known(self, known: KnownCall, data: bytes) -> bool:
        """Takes a call whose bytes before the message came before; False, with nothing done, when it is another."""
        if self._buffer or self._data_left or self._block is not None or self.is_closing:
            return False
        stream = known.stream_of(data)
        is_next = stream > self._last_stream and stream & 1 and len(self.calls) < limits.MAX_STREAMS
        if not is_next or self._decoder.remembered(known.block) is not known.head:
            return False
        self._begin_whole(stream, known.head, known.direct, data[known.first :])
        return True

    def _begin_whole(self, stream: int, head: CallHead, direct: Direct, message: bytes) -> None:
        """Has a call answered that has come whole."""
        self._last_stream = stream
        self.idle.forget()
        self._count_received(len(message))
        call = self.calls[stream] = ServerCall.opened(self, stream, head, self._server.max_bytes, has_read=True)
        direct(call, message)

    def _count_received(self, size: int) -> None:
        self._received += size
        if self._received > limits.CONNECTION_WINDOW // 4:
            self.open_window(0, self._received)
            self._received = 0

    def _begin_data(self, stream: int, size: int, flags: int) -> None:
        if not stream or stream > self._last_stream:
            raise Broken(frames.PROTOCOL_ERROR, "data on a stream that is not open")
        self._data_stream, self._data_left, self._data_ends = stream, size, bool(flags & frames.END_STREAM)
        call = self.calls.get(stream)
        if call is not None:
            self._charge(call, size)
        if not size:
            self.idle.count()
            if call is not None:
                call.take(b"", ends=self._data_ends)

    def _charge(self, call: ServerCall, size: int) -> None:
        call.credit -= size
        if call.credit < 0:
            raise Broken(frames.FLOW_CONTROL_ERROR, "more data than was asked for")

    def _take_data(self, data: bytes, at: int, end: int) -> int:
        size = min(self._data_left, end - at)
        self._data_left -= size
        self._count_received(size)
        call = self.calls.get(self._data_stream)
        if call is not None:
            part = data[at : at + size] if size < limits.LARGE else memoryview(data)[at : at + size]
            call.take(part, ends=self._data_ends and not self._data_left)
        return at + size

    def _take_frame(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == frames.HEADERS:
            block = without_priority(unpadded(payload, flags), flags)
            if flags & frames.END_HEADERS:
                self._open_call(stream, self._decoder.decode(block), flags)
            else:
                self._block, self._block_stream, self._block_flags = bytearray(block), stream, flags
        elif kind == frames.CONTINUATION:
            if self._block is None:
                raise Broken(frames.PROTOCOL_ERROR, "a continuation of nothing")
            self._block += payload
            if len(self._block) > limits.MAX_CONTROL_FRAME:
                raise Broken(frames.ENHANCE_YOUR_CALM, "too many headers")
            self.idle.count()
            if flags & frames.END_HEADERS:
                block, self._block = bytes(self._block), None
                self._open_call(stream, self._decoder.decode(block), self._block_flags)
        elif kind == frames.DATA:
            content = unpadded(payload, flags)
            num_padding = len(payload) - len(content)
            self._received += num_padding
            if (call := self.calls.get(stream)) is not None:
                self._charge(call, num_padding)
                call.skip(num_padding)
            self._begin_data(stream, len(content), flags)
            if content:
                self._take_data(content, 0, len(content))
        else:
            self._take_control(kind, flags, stream, payload)

    def _take_control(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == frames.WINDOW_UPDATE:
            self._open(stream, number(payload) & frames.LARGEST_WINDOW)
            return
        self.idle.count()
        if kind == frames.SETTINGS:
            if not flags & frames.ACK:
                self._set(payload)
        elif kind == frames.PING:
            if len(payload) != 8:
                raise Broken(frames.FRAME_SIZE_ERROR, "a ping has eight bytes")
            if not flags & frames.ACK:
                self.write(frame(frames.PING, frames.ACK, 0, payload))
        elif kind == frames.RST_STREAM:
            if not stream or stream > self._last_stream:
                raise Broken(frames.PROTOCOL_ERROR, "the end of a stream that is not open")
            call = self.calls.pop(stream, None)
            if call is not None:
                call.gone()
                self.finish(stream)
        elif kind == frames.GOAWAY:
            self.drain()
        elif kind == frames.PUSH_PROMISE:
            raise Broken(frames.PROTOCOL_ERROR, "a client cannot push")

    def _open_call(self, stream: int, head: CallHead, flags: int) -> None:
        known = self.calls.get(stream)
        if known is not None or stream <= self._last_stream:  # trailers, which gRPC's clients do not send
            if known is not None and flags & frames.END_STREAM:
                known.take(b"", ends=True)
            return
        if not stream & 1:
            raise Broken(frames.PROTOCOL_ERROR, "a stream of a client has an odd number")
        self._last_stream = stream
        if self.is_closing or len(self.calls) >= limits.MAX_STREAMS:
            self.idle.count()
            self.reset(stream, frames.REFUSED_STREAM)
            return
        self._server.begin(self, stream, head, ends=bool(flags & frames.END_STREAM))

    def _set(self, payload: bytes) -> None:
        for name, value in frames.read_settings(payload):
            if name == frames.INITIAL_WINDOW_SIZE:
                for call in self.calls.values():
                    call.window += value - self.first_window
                self.first_window = value
            elif name == frames.MAX_FRAME_SIZE:
                self.frame_size = min(value, limits.MAX_FRAME)
        self._has_settings = True
        self.write(frame(frames.SETTINGS, frames.ACK, 0))
        self._write_more()

    def _open(self, stream: int, size: int) -> None:
        if not stream:
            self.window += size
            if self.window > frames.LARGEST_WINDOW:
                raise Broken(frames.FLOW_CONTROL_ERROR, "the window is too large")
            self._write_more()
        elif (call := self.calls.get(stream)) is not None:
            call.window += size
            if call.window > frames.LARGEST_WINDOW:
                raise Broken(frames.FLOW_CONTROL_ERROR, "the window is too large")
            call.write_more()
        else:
            self.idle.count()

    def _write_more(self) -> None:
        for call in list(self._waiting.values()):
            if self.window <= 0 or self.is_paused:
                return
            call.write_more()

    def _break(self, code: int, reason: str) -> None:
        self.is_closing = True
        if not self._transport.is_closing():
            self.write(frame(frames.GOAWAY, 0, 0, word(self._last_stream) + word(code) + reason.encode()))
        calls, self.calls = self.calls, {}
        for call in calls.values():
            call.gone()
        self.flush()
        self._transport.close()

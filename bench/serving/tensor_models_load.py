"""Clients that cost almost nothing: prebuilt requests over plain sockets, HTTP/1.1 or gRPC, in one epoll loop.

On a machine with few cores the load generator takes what the servers should have; so nothing is parsed here but the
length of a response. Every client has a connection and one request on its way. What a response must be like is learnt
from the first one, which the caller checks; any other length is an error. `tensor_models` calls it.
"""

from __future__ import annotations

import contextlib
import re
import select
import socket
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass, field

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_WINDOW = (1 << 31) - 1
_READ_BYTES = 1 << 16  # room of a megabyte is made and given back for 14 us each time
_DATA, _HEADERS, _RESET, _SETTINGS, _PING, _GOAWAY, _UPDATE = 0, 1, 3, 4, 6, 7, 8


@dataclass(slots=True)
class Measured:
    """What a run of clients saw.

    Attributes:
        seconds: How long it was measured, until nothing was on its way any more.
        latencies: Of each request, in seconds.
    """

    seconds: float
    latencies: list[float] = field(default_factory=list)

    @property
    def per_s(self) -> float:
        return len(self.latencies) / self.seconds

    def add(self, more: Measured) -> None:
        """Adds what another turn gave."""
        self.seconds += more.seconds
        self.latencies += more.latencies

    def percentile_ms(self, share: float) -> float:
        """Returns a percentile of the latencies in milliseconds."""
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))] * 1e3


class HttpClient:
    """One connection that sends the same request again and again."""

    def __init__(self, port: int, request: bytes) -> None:
        self.socket = connected(port)
        self._request = memoryview(request)
        self._left = memoryview(b"")
        self._missing = 0
        self._length = 0
        self._head = b""
        self.body = b""

    def begin(self) -> None:
        """Sends a request; `has_more` says whether a part of it is left."""
        self._missing = self._length
        self._left = self._request
        self.write()

    @property
    def has_more(self) -> bool:
        """Whether bytes wait for the socket to take them."""
        return bool(self._left)

    def write(self) -> None:
        """Sends what the socket takes."""
        with contextlib.suppress(BlockingIOError):
            while self._left:
                self._left = self._left[self.socket.send(self._left) :]

    def read(self) -> bool:
        """Takes in what has come; says whether the response is complete."""
        data = self.socket.recv(_READ_BYTES)
        if not data:
            raise ConnectionError("the server closed a connection")
        if not self._length:
            return self._learn(data)
        self._missing -= len(data)
        if self._missing > 0:
            return False
        if self._missing < 0 or (len(data) == self._length and not data.startswith(b"HTTP/1.1 200")):
            raise ConnectionError(f"another response than the first: {data[:300]!r}")
        return True

    def _learn(self, data: bytes) -> bool:
        self._head += data
        head, found, body = self._head.partition(b"\r\n\r\n")
        length = _LENGTH.search(head)
        if not found or length is None or len(body) < int(length[1]):
            return False
        if not head.startswith(b"HTTP/1.1 200"):
            raise ConnectionError(self._head[:600].decode("latin-1"))
        self._length, self.body = len(self._head), body
        return True

    def close(self) -> None:
        """Closes the connection."""
        self.socket.close()


class GrpcClient:
    """One HTTP/2 connection that makes the same unary call again and again, as grpc-core would write it."""

    def __init__(self, port: int, path: str, message: bytes) -> None:
        self.socket = connected(port)
        self._message = struct.pack(">BI", 0, len(message)) + message
        names = ((0x44, path), (0x41, f"127.0.0.1:{port}"), (0x5F, "application/grpc"))
        block = b"\x83\x86" + b"".join(bytes([index, len(text)]) + text.encode() for index, text in names)
        self._block = block + b"\x40\x02te\x08trailers"
        self._stream = -1
        self._out = bytearray(_PREFACE)
        self._out += _frame(_SETTINGS, 0, 0, struct.pack(">HIHI", 4, _WINDOW, 2, 0))
        self._out += _frame(_UPDATE, 0, 0, struct.pack(">I", _WINDOW - 65535))
        self._in = bytearray()
        self._rest = memoryview(b"")  # of the message, that flow control held back
        self._frame_size = 16384
        self._first_window = 65535
        self._window = self._stream_window = 65535
        self._taken = self._received = 0
        self._expected = -1
        self.body = b""

    def begin(self) -> None:
        """Starts a call; `has_more` says whether a part of it waits for the socket."""
        self._stream += 2
        self._out += _frame(_HEADERS, 4, self._stream, self._block)
        self._block = b"\x83\x86\xc1\xc0\xbf\xbe"  # by now the other side has a table of them
        self._rest = memoryview(self._message)
        self._stream_window = self._first_window
        self._taken = 0
        self.write()

    @property
    def has_more(self) -> bool:
        """Whether bytes wait for the socket to take them."""
        return bool(self._out)

    def write(self) -> None:
        """Sends what flow control and the socket take."""
        while self._rest and (size := min(len(self._rest), self._window, self._stream_window, self._frame_size)) > 0:
            is_last = size == len(self._rest)
            self._out += _frame(_DATA, int(is_last), self._stream, bytes(self._rest[:size]))
            self._rest = self._rest[size:]
            self._window -= size
            self._stream_window -= size
        with contextlib.suppress(BlockingIOError):
            while self._out:
                del self._out[: self.socket.send(self._out)]

    def read(self) -> bool:
        """Takes in what has come; says whether the call is over."""
        data = self.socket.recv(_READ_BYTES)
        if not data:
            raise ConnectionError("the server closed a connection")
        self._in += data
        is_over = False
        at, end = 0, len(self._in)
        while end - at >= 9:
            size = int.from_bytes(self._in[at : at + 3], "big")
            if end - at < 9 + size:
                break
            kind, flags = self._in[at + 3], self._in[at + 4]
            stream = int.from_bytes(self._in[at + 5 : at + 9], "big")
            at += 9
            if kind == _DATA:
                self._taken += size
                self._received += size
                if self._expected < 0:
                    self.body += self._in[at : at + size]
            elif kind != _HEADERS:
                self._control(kind, flags, bytes(self._in[at : at + size]), stream)
            is_over = is_over or (kind in (_DATA, _HEADERS) and bool(flags & 1))
            at += size
        del self._in[:at]
        if self._received > 1 << 28:
            self._out += _frame(_UPDATE, 0, 0, struct.pack(">I", self._received))
            self._received = 0
        if is_over:
            if self._expected < 0:
                self._expected, self.body = self._taken, self.body[5:]
            if self._taken != self._expected or not self._taken:
                raise ConnectionError(f"a response of {self._taken} bytes, {self._expected} were expected")
        elif self._rest or self._out:
            self.write()
        return is_over

    def _control(self, kind: int, flags: int, body: bytes, stream: int) -> None:
        if kind == _SETTINGS and not flags & 1:
            for name, value in struct.iter_unpack(">HI", body):
                if name == 4:
                    self._stream_window += value - self._first_window
                    self._first_window = value
                elif name == 5:
                    self._frame_size = min(value, 1 << 20)
            self._out += _frame(_SETTINGS, 1, 0, b"")
        elif kind == _PING and not flags & 1:
            self._out += _frame(_PING, 1, 0, body)
        elif kind == _UPDATE:
            (more,) = struct.unpack(">I", body)
            if not stream:
                self._window += more
            elif stream == self._stream:  # not a late one, of the stream before
                self._stream_window += more
        elif kind in (_RESET, _GOAWAY):
            raise ConnectionError(f"the server ended the call or connection: {body!r}")

    def close(self) -> None:
        """Closes the connection."""
        self.socket.close()


Client = HttpClient | GrpcClient


def connected(port: int) -> socket.socket:
    """Returns a connection of this machine that does not wait to fill packets."""
    made = socket.create_connection(("127.0.0.1", port), 30)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    made.setblocking(False)
    return made


def _frame(kind: int, flags: int, stream: int, body: bytes) -> bytes:
    return struct.pack(">BHBBI", len(body) >> 16, len(body) & 0xFFFF, kind, flags, stream) + body


class Crowd:
    """Clients with a connection each, that ask for a while and then pause, so that several servers can take turns.

    Args:
        make: Opens a connection.
        clients: How many.
    """

    def __init__(self, make: Callable[[], Client], clients: int) -> None:
        self._clients: dict[int, Client] = {}
        self._poll = select.epoll()
        self._writing: set[int] = set()
        try:
            for _ in range(clients):
                client = make()
                self._clients[client.socket.fileno()] = client
                self._poll.register(client.socket, select.EPOLLIN)
        except BaseException:
            self.close()
            raise

    @property
    def body(self) -> bytes:
        """The body of a response; empty before there was one."""
        return next((client.body for client in self._clients.values() if client.body), b"")

    def ask(self, seconds: float, warm_s: float = 0.0) -> Measured:
        """Lets all ask for a while after a while that does not count, then waits until nothing is on its way."""
        clock, clients = time.perf_counter, self._clients
        began: dict[int, float] = {}
        for number, client in clients.items():
            began[number] = clock()
            client.begin()
            self._look_at(number, client)
        start = clock() + warm_s
        end = start + seconds
        found = Measured(0.0)
        now = heard = clock()
        while began:
            for number, events in self._poll.poll(1.0):
                heard = now
                client = clients[number]
                if events & select.EPOLLOUT:
                    client.write()
                if events & ~select.EPOLLOUT and client.read():
                    now = clock()
                    if now >= start:
                        found.latencies.append(now - began[number])
                    if now < end:
                        began[number] = now
                        client.begin()
                    else:
                        del began[number]
                self._look_at(number, client)
            now = clock()
            if now - heard > 30:
                raise TimeoutError("no response for 30 s")
        found.seconds = now - start
        return found

    def _look_at(self, number: int, client: Client) -> None:
        if client.has_more != (number in self._writing):
            self._writing ^= {number}
            self._poll.modify(number, select.EPOLLIN | (select.EPOLLOUT if client.has_more else 0))

    def close(self) -> None:
        """Closes the connections."""
        self._poll.close()
        for client in self._clients.values():
            client.close()


def run(make: Callable[[], Client], clients: int, warm_s: float, measured_s: float) -> tuple[Measured, bytes]:
    """Lets `clients` ask for a while; returns what they saw and the body of a response."""
    with contextlib.closing(Crowd(make, clients)) as crowd:
        return crowd.ask(measured_s, warm_s), crowd.body

"""The worker's end of the socket: whoever waits for a message reads, so no thread stands between socket and model.

The main thread waits for batches; threads of the model wait for responses to their calls. One of those that wait reads
the socket and hands every message out; when it has what it wanted, the next one reads. `poll` takes in what has already
arrived, for a model that asks whether its request was cancelled. Sends are whole messages, from any thread.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable

import msgspec

from millpond.serve.workers import wire
from millpond.serve.workers.wire import FromWorker, ToWorker

_RECV_BYTES = 1 << 18


class Channel:
    """Reads and writes messages over a connected socket.

    Args:
        sock: Blocking; stays the caller's to close.
        take: Called with every message that arrives, one at a time, on whichever thread reads.
    """

    def __init__(self, sock: socket.socket, take: Callable[[ToWorker], None]) -> None:
        self._sock = sock
        self._take = take
        self._frames = wire.FrameReader()
        # Kept: a new buffer of this size for every read would be mapped and unmapped, ten times the read itself.
        self._received = memoryview(bytearray(_RECV_BYTES))
        self._decoder = msgspec.msgpack.Decoder(ToWorker)
        self._encoder = msgspec.msgpack.Encoder()
        self._reader = threading.Lock()  # held by the thread that reads
        self._turn = threading.Condition()
        self._num_waiting = 0  # threads that wait for another one to read
        self._send_lock = threading.Lock()
        self.is_closed = False

    def wait(self, ready: Callable[[], object]) -> None:
        """Returns when `ready()` holds; it is asked after every message.

        Raises:
            ConnectionError: The gateway closed the socket before.
        """
        while not self._reader.acquire(blocking=False):
            if ready():
                return
            self._wait_for_reader(ready)
        try:
            while not ready():
                if self.is_closed:
                    raise ConnectionError("the gateway closed the connection")
                self._read(0)
        finally:
            self._reader.release()
            if self._num_waiting:
                self._tell_waiting()

    def poll(self) -> None:
        """Takes in what has arrived, without waiting; does nothing while another thread reads."""
        if not self._reader.acquire(blocking=False):
            return
        try:
            if not self.is_closed:
                self._read(socket.MSG_DONTWAIT)
        finally:
            self._reader.release()
            if self._num_waiting:
                self._tell_waiting()

    def send(self, message: FromWorker) -> None:
        """Sends one message.

        Raises:
            ValueError: It is larger than a message may be.
            ConnectionError: The gateway is gone.
        """
        with self._send_lock:
            self._sock.sendall(wire.encode(message, self._encoder))

    def _wait_for_reader(self, ready: Callable[[], object]) -> None:
        """Waits for a message that another thread reads, or for its place."""
        with self._turn:
            self._num_waiting += 1  # before the look at the lock: who lets go of it looks at this afterwards
            try:
                while self._reader.locked() and not ready():
                    self._turn.wait()
            finally:
                self._num_waiting -= 1

    def _tell_waiting(self) -> None:
        with self._turn:
            self._turn.notify_all()

    def _read(self, flags: int) -> None:
        """Reads once and hands out; the caller is the reader."""
        try:
            size = self._sock.recv_into(self._received, 0, flags)
            if not size:
                self.is_closed = True
            for frame in self._frames.feed(self._received[:size]):
                self._take(self._decoder.decode(frame))
        except BlockingIOError:
            return
        except OSError:
            self.is_closed = True
        if self._num_waiting:
            self._tell_waiting()

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
        self._decoder = msgspec.msgpack.Decoder(ToWorker)
        self._encoder = msgspec.msgpack.Encoder()
        self._turn = threading.Condition()
        self._reading = False
        self._send_lock = threading.Lock()
        self.is_closed = False

    def wait(self, ready: Callable[[], bool]) -> None:
        """Returns when `ready()` holds; it is asked after every message.

        Raises:
            ConnectionError: The gateway closed the socket before.
        """
        while True:
            with self._turn:
                while not ready():
                    if self.is_closed:
                        raise ConnectionError("the gateway closed the connection")
                    if not self._reading:
                        self._reading = True
                        break
                    self._turn.wait()
                else:
                    return
            self._read(0)

    def poll(self) -> None:
        """Takes in what has arrived, without waiting; does nothing while another thread reads."""
        with self._turn:
            if self._reading or self.is_closed:
                return
            self._reading = True
        self._read(socket.MSG_DONTWAIT)

    def send(self, message: FromWorker) -> None:
        """Sends one message.

        Raises:
            ValueError: It is larger than a message may be.
            ConnectionError: The gateway is gone.
        """
        with self._send_lock:
            self._sock.sendall(wire.encode(message, self._encoder))

    def _read(self, flags: int) -> None:
        """Reads once and hands out; the caller has set `_reading`."""
        try:
            data = self._sock.recv(_RECV_BYTES, flags)
            self.is_closed = not data
            for frame in self._frames.feed(data):
                self._take(self._decoder.decode(frame))
        except BlockingIOError:
            pass
        except OSError:
            self.is_closed = True
        finally:
            with self._turn:
                self._reading = False
                self._turn.notify_all()

"""What the engine process sends: step outputs on a socket that must never hold a step up.

Owns the bytes that did not fit into the socket and the outputs behind them. While the gateway does not read, outputs
are merged sequence by sequence, so memory is bounded by the output of the running requests and nothing is lost.
"""

from __future__ import annotations

import socket

from millpond.api.request import EngineStats
from millpond.inference.engine.messages import SequenceOutput, StepOutput, encode


class Outbox:
    """Sends over a non-blocking socket."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._partial = memoryview(b"")
        self._waiting: dict[tuple[str, int], SequenceOutput] = {}
        self._stats: EngineStats | None = None  # None: nothing to say

    @property
    def is_blocked(self) -> bool:
        """True while something waits for the socket."""
        return bool(self._partial) or self._stats is not None

    def put(self, outputs: list[SequenceOutput], stats: EngineStats) -> None:
        """Takes a step's outputs, and sends what the socket takes."""
        self._stats = stats
        for output in outputs:
            key = (output.request_id, output.index)
            earlier = self._waiting.get(key)
            if earlier is None:
                self._waiting[key] = output
            else:
                earlier.merge(output)
        self.flush()

    def flush(self) -> None:
        """Sends what the socket takes now.

        Raises:
            ConnectionError: The gateway is gone.
        """
        self._send_partial()
        if not self._partial and self._stats is not None:
            message = StepOutput(list(self._waiting.values()), self._stats)
            self._waiting.clear()
            self._stats = None
            self._partial = memoryview(encode(message))
            self._send_partial()

    def _send_partial(self) -> None:
        while self._partial:
            try:
                sent = self._sock.send(self._partial)
            except BlockingIOError:
                return
            self._partial = self._partial[sent:]

"""The engine process's loop: commands in, steps, outputs out. The one thread that owns the core.

Sleeps in select() while there is nothing to do; looks for commands between steps without waiting for them. Knows the
socket, not what is on the other end of it. Called by process.py once the engine is loaded.
"""

from __future__ import annotations

import logging
import select
import socket

from millpond.api.request import ErrorInfo, Request
from millpond.base.errors import MillpondError
from millpond.inference.engine.core import EngineCore, StepFailedError
from millpond.inference.engine.messages import Commands, FrameReader, SequenceOutput, to_engine_decoder
from millpond.inference.engine.outbox import Outbox

MAX_FAILED_STEPS = 3  # in a row; after that a fresh process is the better bet
_RECV_BYTES = 1 << 18


class EngineLoop:
    """Runs a core for one gateway.

    Args:
        core: What to run.
        sock: The gateway's end of the line.
        frames: What was read from the socket so far.
    """

    def __init__(self, core: EngineCore, sock: socket.socket, frames: FrameReader) -> None:
        self._core = core
        self._sock = sock
        self._frames = frames
        self._decoder = to_engine_decoder()
        self._outbox = Outbox(sock)
        self._log = logging.getLogger(__name__)
        self._num_failed = 0  # steps in a row
        sock.setblocking(False)

    def run(self) -> bool:
        """Serves until the gateway closes its end.

        Returns:
            False when it gave up because step after step failed.
        """
        try:
            is_open = self._apply(b"")  # commands may have come with the last bytes that were read while loading
            while is_open:
                if self._core.has_work and not self._step():
                    return False
                is_open = self._receive()
        except ConnectionError as error:
            self._log.info("The gateway is gone: %s.", error)
        return True

    def _receive(self) -> bool:
        """Takes what the gateway sent, waiting for it when there is nothing else to do; False when it hung up."""
        if not self._core.has_work or self._outbox.is_blocked:
            wait_s = 0.0 if self._core.has_work else None
            _, writable, _ = select.select([self._sock], [self._sock] if self._outbox.is_blocked else [], [], wait_s)
            if writable:
                self._outbox.flush()
        try:
            while data := self._sock.recv(_RECV_BYTES):
                self._apply(data)
                if len(data) < _RECV_BYTES:
                    return True
        except BlockingIOError:
            return True
        return False

    def _apply(self, data: bytes) -> bool:
        failed: list[SequenceOutput] = []
        had_commands = False
        for frame in self._frames.feed(data):
            commands = self._decoder.decode(frame)
            if not isinstance(commands, Commands):
                raise ConnectionError("the gateway sent something that is no command")
            had_commands = True
            for cancel in commands.cancel:
                self._core.cancel(cancel.request_id, cancel.index)
            for request in commands.add:
                failed += self._add(request)
        if failed or (had_commands and not self._core.has_work):
            self._outbox.put(failed, self._core.stats())
        return True

    def _add(self, request: Request) -> list[SequenceOutput]:
        try:
            self._core.add(request)
        except MillpondError as error:
            info = ErrorInfo(error.code, str(error))
        except Exception as error:
            self._log.exception("Request %s could not be added.", request.request_id)
            info = ErrorInfo(MillpondError.code, f"The request could not be added: {type(error).__name__}: {error}")
        else:
            return []
        return [SequenceOutput(request.request_id, i, [], "error", error=info) for i in range(request.params.n)]

    def _step(self) -> bool:
        try:
            outputs = self._core.step()
            self._num_failed = 0
        except StepFailedError as failure:
            self._num_failed += 1
            self._log.error("A step failed.", exc_info=failure.__cause__)
            outputs = failure.outputs
        self._outbox.put(outputs, self._core.stats())
        return self._num_failed < MAX_FAILED_STEPS

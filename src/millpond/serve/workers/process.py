"""`WorkerProcess`: a worker process with its socket, its arenas and its output, as the gateway holds it.

Starts it, passes messages on, and says when it is gone and how it went. Knows no batches and no models. Lives on the
event loop; a restarted worker is a new `WorkerProcess`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import cast

import msgspec

import millpond
from millpond.config.env import own_environment
from millpond.serve.prompt_writer import PromptWriter
from millpond.serve.workers import wire
from millpond.serve.workers.arena import ArenaReader, ArenaWriter, make_file
from millpond.serve.workers.resting import worker_environment
from millpond.serve.workers.tensor_wire import TensorPort

# Not `-m`: the worker must not import what lies in the directory the gateway was started in, and must find the
# gateway's own package also where it is not installed.
_PACKAGE_ROOT = str(Path(millpond.__file__).parent.parent)
_BOOT = f"import sys; sys.path.append({_PACKAGE_ROOT!r}); from millpond.serve.workers.entry import main; main()"
WORKER_COMMAND = (sys.executable, "-P", "-u", "-c", _BOOT)
MAX_LINE_BYTES = 1 << 13
REAP_TIMEOUT_S = 5.0
_LAST_OUTPUT_TIMEOUT_S = 1.0


class WorkerProcess(asyncio.Protocol):
    """One process, from its start to its end.

    Args:
        name: For the log.
        on_message: Called with this and every message of the worker.
        on_lost: Called once, when the socket is closed from the other side or by `kill`.
    """

    def __init__(
        self,
        name: str,
        on_message: Callable[[WorkerProcess, wire.FromWorker], None],
        on_lost: Callable[[WorkerProcess], None],
    ) -> None:
        self._name = name
        self._on_message = on_message
        self._on_lost = on_lost
        self._frames = wire.FrameReader()
        self._decoder = msgspec.msgpack.Decoder(wire.FromWorker)
        self._encoder = msgspec.msgpack.Encoder()
        self._transport: asyncio.Transport | None = None
        self._writer: PromptWriter | None = None
        self._output: asyncio.ReadTransport | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self.tensors: TensorPort = cast(TensorPort, None)  # packs and unpacks those of its messages; set by `start`
        self._unsent: list[bytearray] = []
        self._loop = asyncio.get_running_loop()
        self._writable = asyncio.Event()
        self._writable.set()
        self._log = logging.getLogger(__name__)
        self._lines = _OutputLines(lambda line: self._log.info("%s: %s", self._name, line))

    @property
    def pid(self) -> int | None:
        """The process's id once it was started."""
        return None if self._process is None else self._process.pid

    async def start(self, inline_bytes: int, arena_bytes: int) -> None:
        """Starts the process; it waits for its `Hello`."""
        loop = asyncio.get_running_loop()
        with contextlib.ExitStack() as held:
            to_worker, from_worker = (make_file(arena_bytes), make_file(arena_bytes))
            held.callback(os.close, to_worker)
            held.callback(os.close, from_worker)
            writer, reader = ArenaWriter(to_worker, arena_bytes), ArenaReader(from_worker, arena_bytes)
            self.tensors = TensorPort(writer, reader, inline_bytes, writable=False)
            ours, theirs = socket.socketpair()
            held.callback(theirs.close)
            read_end, write_end = os.pipe()
            held.callback(os.close, write_end)
            numbers = {"--fd": theirs.fileno(), "--to-worker": to_worker, "--from-worker": from_worker}
            flags = [part for flag, number in numbers.items() for part in (flag, str(number))]
            try:
                # In this thread, not in a pool: the kernel ends the worker when the thread that started it ends.
                self._process = subprocess.Popen(
                    [*WORKER_COMMAND, *flags, "--parent", str(os.getpid())],
                    pass_fds=list(numbers.values()),
                    stdin=subprocess.DEVNULL,
                    stdout=write_end,
                    stderr=write_end,
                    env=worker_environment(own_environment()),
                )
                ours.setblocking(False)
                await loop.create_unix_connection(lambda: self, sock=ours)
            except BaseException:
                ours.close()
                os.close(read_end)
                raise
            self._output, _ = await loop.connect_read_pipe(lambda: self._lines, os.fdopen(read_end, "rb", 0))

    def send(self, message: wire.ToWorker) -> None:
        """Queues a message; lost without a word when the worker is gone, which `on_lost` tells.

        Raises:
            ValueError: It is larger than a message may be.
        """
        if self._writer is not None:
            self._unsent.append(wire.encode(message, self._encoder))
            if len(self._unsent) == 1:  # all that is sent in one turn of the loop wakes the worker once
                self._loop.call_soon(self.flush)

    def send_now(self, message: wire.ToWorker) -> None:
        """Sends a message, with what is queued before it, to a worker that waits for it.

        Raises:
            ValueError: It is larger than a message may be.
        """
        if self._writer is None:
            return
        frame = wire.encode(message, self._encoder)
        if self._unsent:
            self._unsent.append(frame)
            self.flush()
        else:
            self._writer.write_one(frame)

    def flush(self) -> None:
        """Sends what is queued now."""
        frames, self._unsent = self._unsent, []
        if frames and self._writer is not None:
            self._writer.write(frames)

    async def drained(self) -> None:
        """Waits until few enough bytes are queued that more may be; returns at once when the worker is gone."""
        await self._writable.wait()

    def kill(self) -> None:
        """Ends the process at once."""
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
        if self._transport is not None:
            self._transport.close()

    async def reap(self, grace_s: float) -> str:
        """Waits for the process to end, kills it after `grace_s`, and returns how it ended."""
        if self._process is None:
            return "did not start"
        if not await self._ended_within(grace_s):
            self._process.kill()
            await self._ended_within(REAP_TIMEOUT_S)
        if self._transport is not None:
            self._transport.close()
        if self._output is not None:
            # What it printed last is still in the pipe; a process that it left behind may hold the other end.
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._lines.ended.wait(), _LAST_OUTPUT_TIMEOUT_S)
            self._output.close()
        return _describe_exit(self._process.returncode)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._writer = PromptWriter(self._transport)

    def data_received(self, data: bytes) -> None:
        for frame in self._frames.feed(data):
            self._on_message(self, self._decoder.decode(frame))

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._writable.set()
        self._on_lost(self)

    async def _ended_within(self, seconds: float) -> bool:
        assert self._process is not None
        deadline = asyncio.get_running_loop().time() + seconds
        pause = 0.001
        while self._process.poll() is None:
            if asyncio.get_running_loop().time() >= deadline:
                return False
            await asyncio.sleep(pause)
            pause = min(pause * 2, 0.05)
        return True


class _OutputLines(asyncio.Protocol):
    """Cuts what the process prints into lines; a line that is too long is cut in pieces."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._partial = b""
        self.ended = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        *lines, self._partial = (self._partial + data).split(b"\n")
        if len(self._partial) > MAX_LINE_BYTES:
            lines.append(self._partial)
            self._partial = b""
        for line in lines:
            self._say(line)

    def connection_lost(self, exc: Exception | None) -> None:
        self._say(self._partial)
        self._partial = b""
        self.ended.set()

    def _say(self, line: bytes) -> None:
        if text := line.decode(errors="replace").rstrip():
            self._on_line(text)


def _describe_exit(status: int | None) -> str:
    if status is None:
        return "does not end"
    if status < 0:
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-status).name}"
        return f"was killed by signal {-status}"
    return f"exited with status {status}"

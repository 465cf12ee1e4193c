"""Keeps one engine process alive: starts it, talks to it over a socket pair, and starts it again when it dies.

Owns the process and its socket; knows no requests. The client listens through `EngineListener`. Runs on asyncio in the
gateway, asleep until the engine says something. No torch.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, cast

import millpond
from millpond.api.request import EngineInfo
from millpond.base.errors import EngineDeadError
from millpond.config.schema import EngineConfig
from millpond.inference.engine import messages

ProgressCallback = Callable[[str, float], None]
# Not `-m`: the engine must not import what lies in the directory the gateway was started in, and must find the
# gateway's own package also where it is not installed.
_PACKAGE_ROOT = str(Path(millpond.__file__).parent.parent)
_BOOT = f"import sys; sys.path.append({_PACKAGE_ROOT!r}); from millpond.inference.engine.process import main; main()"
ENGINE_COMMAND = (sys.executable, "-P", "-c", _BOOT)
EXIT_TIMEOUT_S = 5.0


class EngineListener(Protocol):
    """Who is told what the engine says. Called on the event loop; must not raise."""

    def engine_up(self, info: EngineInfo) -> None: ...

    def engine_step(self, step: messages.StepOutput) -> None: ...

    def engine_down(self, reason: str) -> None: ...


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How long to wait before a dead engine is started again: doubling, until one lived for `healthy_after_s`."""

    first_delay_s: float = 0.1
    longest_delay_s: float = 5.0
    healthy_after_s: float = 30.0

    def delay_s(self, failures: int) -> float:
        """Returns the wait after so many failures in a row (1 or more)."""
        return min(self.first_delay_s * 2.0 ** min(failures - 1, 30), self.longest_delay_s)


class EngineLink(asyncio.Protocol):
    """The gateway's end of the socket: one call of `on_message` a message, `on_lost` once at the end."""

    def __init__(self, on_message: Callable[[messages.FromEngine], None], on_lost: Callable[[], None]) -> None:
        self._on_message = on_message
        self._on_lost = on_lost
        self._frames = messages.FrameReader()
        self._decoder = messages.from_engine_decoder()
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        for frame in self._frames.feed(data):
            self._on_message(self._decoder.decode(frame))

    def connection_lost(self, exc: Exception | None) -> None:
        self._on_lost()

    def send(self, message: messages.ToEngine) -> None:
        """Queues a message; lost without a word when the engine is gone, which `on_lost` tells."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(messages.encode(message))

    def close(self) -> None:
        """Closes the socket: the engine exits when it sees that."""
        if self._transport is not None:
            self._transport.close()


class Supervisor:
    """One engine process, restarted with back-off.

    Args:
        config: Sent to the engine in its first message.
        model_path: The file or directory that its model stands for; sent too.
        listener: Told of every message, death and return.
        command: What to run; `--fd N` is added.
        policy: The back-off.
    """

    def __init__(
        self,
        config: EngineConfig,
        model_path: str,
        listener: EngineListener,
        *,
        command: Sequence[str] = ENGINE_COMMAND,
        policy: RestartPolicy | None = None,
    ) -> None:
        self._config = config
        self._model_path = model_path
        self._listener = listener
        self._command = tuple(command)
        self._policy = policy or RestartPolicy()
        self._log = logging.getLogger(__name__)
        self._process: subprocess.Popen[bytes] | None = None
        self._link: EngineLink | None = None
        self._restart: asyncio.Task[None] | None = None
        self._failures = 0
        self._is_ready = False
        self._ready_at = 0.0
        self._closing = False

    @property
    def pid(self) -> int | None:
        """The engine's process id while there is one."""
        return None if self._process is None else self._process.pid

    async def start(self, on_progress: ProgressCallback | None = None) -> EngineInfo:
        """Starts the engine and waits until it is ready.

        Raises:
            ConfigError, CheckpointError, MemoryError: What ended the loading, as it was raised in the engine.
            EngineDeadError: The process ended without saying why.
        """
        try:
            info = await self._launch(on_progress)
        except BaseException:
            await self.close()
            raise
        self._listener.engine_up(info)
        return info

    def send(self, commands: messages.Commands) -> None:
        """Sends to the engine that runs now."""
        if self._link is not None:
            self._link.send(commands)

    async def close(self) -> None:
        """Ends the engine: by closing its socket, and with SIGKILL when it is still loading or does not hear that."""
        self._closing = True
        if self._restart is not None:
            self._restart.cancel()
            await asyncio.gather(self._restart, return_exceptions=True)
        await self._reap(EXIT_TIMEOUT_S if self._is_ready else 0.0)

    async def _launch(self, on_progress: ProgressCallback | None) -> EngineInfo:
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[EngineInfo | None] = loop.create_future()

        def on_message(message: messages.FromEngine) -> None:
            match message:
                case messages.StepOutput():
                    self._listener.engine_step(message)
                case messages.Progress() if on_progress is not None:
                    on_progress(message.stage, message.fraction)
                case messages.Ready() if not ready.done():
                    ready.set_result(message.info)
                case messages.LoadFailed() if not ready.done():
                    ready.set_exception(messages.failure_error(message))
                case _:
                    pass

        def on_lost() -> None:
            if not ready.done():
                ready.set_result(None)
            elif not ready.cancelled() and ready.exception() is None and ready.result() is not None:
                self._died(link)

        started_s = time.monotonic()
        link = EngineLink(on_message, on_lost)
        await self._spawn(link)
        self._link = link
        link.send(messages.hello(self._config, self._model_path, started_s))
        info = await ready
        if info is None:
            raise EngineDeadError(
                f"The engine process ended{await self._exit_reason()} while it was loading.",
                fix="What it said last is on standard error.",
            )
        self._is_ready, self._ready_at = True, time.monotonic()
        return info

    async def _exit_reason(self) -> str:
        """How a process ended whose socket just closed."""
        assert self._process is not None
        with contextlib.suppress(subprocess.TimeoutExpired):
            await asyncio.to_thread(self._process.wait, EXIT_TIMEOUT_S)
        return _describe_exit(self._process.returncode)

    async def _spawn(self, link: EngineLink) -> None:
        ours, theirs = socket.socketpair()
        try:
            # In this thread, not in a pool: the kernel ends the engine when the thread that started it ends.
            self._process = subprocess.Popen(
                [*self._command, "--fd", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
            )
            ours.setblocking(False)
            await asyncio.get_running_loop().create_unix_connection(lambda: link, sock=ours)
        except BaseException:
            ours.close()
            raise
        finally:
            theirs.close()

    def _died(self, link: EngineLink) -> None:
        if self._closing or link is not self._link:
            return
        assert self._process is not None
        self._is_ready = False
        reason = f"The engine process ended{_describe_exit(self._process.poll())}."
        self._log.error("%s It is started again.", reason)
        lived = time.monotonic() - self._ready_at
        self._failures = 1 if lived >= self._policy.healthy_after_s else self._failures + 1
        self._restart = asyncio.get_running_loop().create_task(self._bring_back())
        self._listener.engine_down(reason)

    async def _bring_back(self) -> None:
        while True:
            await self._reap(0.0)
            await asyncio.sleep(self._policy.delay_s(self._failures))
            try:
                info = await self._launch(None)
            except Exception as error:
                self._failures += 1
                self._log.error("The engine could not be started again: %s", error)
                continue
            self._log.warning("The engine is back, process %s.", self.pid)
            self._listener.engine_up(info)
            return

    async def _reap(self, timeout_s: float) -> None:
        """Closes the socket and waits for the process; kills it after `timeout_s`."""
        link, process, self._link, self._process = self._link, self._process, None, None
        if link is not None:
            link.close()
        if process is None:
            return
        try:
            if timeout_s <= 0:
                process.kill()
            await asyncio.to_thread(process.wait, max(timeout_s, EXIT_TIMEOUT_S))
        except subprocess.TimeoutExpired:
            self._log.warning("Engine process %s did not end in %s s and is killed.", process.pid, timeout_s)
        finally:
            process.kill()  # does nothing when it was waited for
            process.wait()


def _describe_exit(returncode: int | None) -> str:
    if returncode is None:
        return ""
    if returncode < 0:
        return f" by signal {-returncode} ({signal.Signals(-returncode).name})"
    return f" with exit status {returncode}"

"""A Millpond server as a user starts it: its own process, a port of its own choice, stopped by signals."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

START_TIMEOUT_S = 120
STOP_TIMEOUT_S = 30
_URL = re.compile(r"^Millpond is serving (?P<name>\S+) at (?P<url>http://\S+)$")


class ServerProcess:
    """Started by the constructor; `wait_ready` returns once it has printed its URL.

    Args:
        model: What to serve.
        flags: Further command-line arguments.
    """

    def __init__(self, model: Path, *flags: str) -> None:
        command = [sys.executable, "-m", "millpond", "serve", str(model), "--port", "0", *flags]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        self.url = ""
        self.lines: list[str] = []
        self.errors: list[str] = []
        self._ready = threading.Event()
        self._readers = [
            threading.Thread(target=self._read_output, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def wait_ready(self) -> ServerProcess:
        """Waits for the URL.

        Raises:
            RuntimeError: It ended, or took too long.
        """
        if not self._ready.wait(START_TIMEOUT_S) or not self.url:
            self.close()
            raise RuntimeError(f"the server did not start: {''.join(self.errors)}")
        return self

    def signal(self, number: signal.Signals) -> None:
        """Sends a signal to the server, not to its engine."""
        self.process.send_signal(number)

    def wait(self) -> int:
        """Returns the exit status."""
        status = self.process.wait(STOP_TIMEOUT_S)
        for reader in self._readers:
            reader.join(STOP_TIMEOUT_S)
        return status

    def children(self) -> list[int]:
        """Process ids of what the server started: the engine."""
        path = Path(f"/proc/{self.process.pid}/task")
        return [
            int(child)
            for task in path.iterdir()
            for child in (task / "children").read_text().split()
            if b"engine" in Path(f"/proc/{child}/cmdline").read_bytes()
        ]

    def close(self) -> None:
        """Ends the server and everything it started, whatever state they are in."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(STOP_TIMEOUT_S)
        for reader in self._readers:
            reader.join(STOP_TIMEOUT_S)
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()

    def __enter__(self) -> ServerProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _read_output(self) -> None:
        for line in self._lines_of(self.process.stdout):
            self.lines.append(line)
            if match := _URL.match(line.strip()):
                self.url = match["url"]
                self._ready.set()
        self._ready.set()

    def _read_errors(self) -> None:
        self.errors.extend(self._lines_of(self.process.stderr))

    def _lines_of(self, stream: object) -> Iterator[str]:
        yield from stream  # type: ignore[misc]

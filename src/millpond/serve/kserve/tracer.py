"""`Tracer`: which requests are traced, and the files their traces are written to.

Owns the numbers of traces and the thread that writes, so that a slow disk holds up no request; what waits for it is
bounded, and traces beyond that are lost with a line in the log. A file is a whole JSON list after every trace.
"""

from __future__ import annotations

import itertools
import json
import logging
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import BoundedSemaphore

from millpond.serve.kserve.trace_settings import TraceSettings
from millpond.serve.servables.tracing import Record, RequestTrace, TraceLevel

_MAX_WAITING = 1024
_log = logging.getLogger("millpond.serve.kserve")


class Tracer:
    """The traces of one server.

    Args:
        settings: What is traced; they change while it runs.
        file: Where traces go; "" is nowhere.
    """

    def __init__(self, settings: TraceSettings, file: str) -> None:
        self._settings = settings
        self._files = TraceFiles(Path(file)) if file else None
        self._ids = itertools.count(1)

    def sample(self, model: str) -> RequestTrace | None:
        """Returns the trace of a request that came, None for most."""
        files = self._files
        if files is None or not self._settings.is_on:
            return None
        sampled = self._settings.take(model)
        if sampled is None:
            return None
        level = TraceLevel("TIMESTAMPS" in sampled.levels, "TENSORS" in sampled.levels)
        return RequestTrace(
            level, self._ids, lambda records: files.write(sampled.group, sampled.log_frequency, records)
        )

    def flush(self) -> None:
        """Waits until the traces that have ended are written."""
        if self._files is not None:
            self._files.flush()

    def close(self) -> None:
        """Writes what waits."""
        if self._files is not None:
            self._files.close()


class TraceFiles:
    """FILE, or FILE.0, FILE.1 and so on.

    Args:
        path: FILE.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._room = BoundedSemaphore(_MAX_WAITING)
        self._thread = ThreadPoolExecutor(1, "millpond-traces")
        self._numbers = itertools.count()
        self._parts: dict[str, tuple[Path, int]] = {}  # by group: its file, and how many traces are in it
        self._begun: set[Path] = set()
        self._has_failed = False

    def write(self, group: str, log_frequency: int, records: list[Record]) -> None:
        """Adds a trace, later and in another thread.

        Args:
            group: Whose traces share files: a model with settings of its own, or "".
            log_frequency: How many traces a file takes; 0 is all.
            records: Of the trace.
        """
        if not self._room.acquire(blocking=False):
            self._complain("traces come faster than they can be written")
            return
        self._thread.submit(self._write, group, log_frequency, records)

    def flush(self) -> None:
        """Waits until what was given so far is written."""
        self._thread.submit(int).result()

    def close(self) -> None:
        """Waits until everything is written."""
        self._thread.shutdown()

    def _write(self, group: str, log_frequency: int, records: list[Record]) -> None:
        try:
            path = self._path_for(group, log_frequency)
            content = json.dumps(records, separators=(",", ":"))[1:].encode()
            is_new = path not in self._begun
            flags = os.O_CREAT | os.O_RDWR | (os.O_TRUNC if is_new else 0)
            # Traces can hold what users sent, so nobody else may read them.
            with os.fdopen(os.open(path, flags, 0o600), "r+b") as file:
                if is_new:
                    file.write(b"[" + content)
                else:
                    file.seek(-1, os.SEEK_END)
                    file.write(b"," + content)
            is_full = log_frequency and self._parts[group][1] >= log_frequency
            (self._begun.discard if is_full else self._begun.add)(path)
        except OSError as error:
            self._complain(f"traces cannot be written: {error}")
        finally:
            self._room.release()

    def _path_for(self, group: str, log_frequency: int) -> Path:
        if not log_frequency:
            return self._path
        path, count = self._parts.get(group, (self._path, log_frequency))
        if count >= log_frequency:
            path, count = Path(f"{self._path}.{next(self._numbers)}"), 0
        self._parts[group] = (path, count + 1)
        return path

    def _complain(self, what: str) -> None:
        if not self._has_failed:
            self._has_failed = True
            _log.warning("%s; this is said once", what)

"""A jobs directory with a real controller process, which a test can kill; nothing of it is left afterwards."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from millpond.api.job import JobStatus
from millpond.jobs.client import JobsClient
from millpond.jobs.service import JobsPlace, controller_pid, ensure_controller, is_running
from tests.support.postgres import location as location
from tests.support.postgres import server as server


class LocalRoom:
    """Submits to a controller of its own and waits."""

    def __init__(self, root: Path, database: str | None = None) -> None:
        self.root = root
        self.place = JobsPlace(root / "jobs")
        if database is not None:
            self.place.root.mkdir()
            self.place.settings.write_text(f"database: {database}\n")
        self.work = root / "work"
        self.work.mkdir()
        self.environment = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self.client = JobsClient(self.place.root, self.environment, str(self.work))

    def wait(self, name: str, until: Callable[[JobStatus], bool], timeout_s: float = 60.0) -> JobStatus:
        status = self.client.wait(name, until, timeout_s)
        assert until(status), status
        return status

    def wait_end(self, name: str, timeout_s: float = 60.0) -> JobStatus:
        return self.wait(name, lambda status: status.phase.is_final, timeout_s)

    def wait_running(self, name: str, timeout_s: float = 60.0) -> JobStatus:
        return self.wait(name, lambda s: all(r.pid is not None for r in s.replicas), timeout_s)

    def log(self, name: str, instance: str | None = None) -> str:
        status = self.client.get(name)
        return b"".join(self.client.logs(status, self.client.find_replica(status, instance))).decode()

    def kill_controller(self, number: signal.Signals = signal.SIGKILL) -> None:
        """As the kernel does when memory is short: at once, wherever it is."""

        def is_gone() -> bool:
            pid = controller_pid(self.place)
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            return not is_running(self.place)

        until(is_gone)

    def start_controller(self) -> None:
        ensure_controller(self.place)

    def close(self) -> None:
        names = [job.uid for job in self.client.jobs()]
        if names:
            self.client.delete(names)
        self.kill_controller(signal.SIGTERM)
        self.client.close()


def until(is_so: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.fixture
def room(tmp_path: Path) -> Iterator[LocalRoom]:
    made = LocalRoom(tmp_path)
    yield made
    made.close()

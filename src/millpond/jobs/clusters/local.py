"""Jobs as processes of this machine.

Every run has a directory and a shim (see `shim`) that outlives the controller, so that a controller that comes back
finds what runs and what ended. Owns no decision: which run starts when is the controller's.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

from millpond.jobs.clusters import shim
from millpond.jobs.clusters.base import Run, RunId, RunReport
from millpond.jobs.scheduling.types import NodeSpec

_HOST = "127.0.0.1"
_LOST, _NOT_STARTED = 137, 128
_LOOK_FOR_LOST_EVERY_S = 1.0


class LocalCluster:
    """One node: this machine.

    Args:
        directory: Where runs, logs and the wake-up pipe are.
        node: What the machine offers.
        clock: Seconds since the epoch.
    """

    def __init__(self, directory: Path, node: NodeSpec, clock: Callable[[], float]) -> None:
        self._directory = directory
        self._node = node
        self._clock = clock
        self._watched: dict[RunId, bool] = {}  # whether it was reported as running
        self._starting: dict[RunId, subprocess.Popen[bytes]] = {}
        self._failed: list[RunReport] = []
        self._looked_s = 0.0
        directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    @property
    def wake_path(self) -> Path:
        """A pipe that shims and clients write to when there is news."""
        return self._directory / "wake"

    def nodes(self) -> Sequence[NodeSpec]:
        """This machine."""
        return (self._node,)

    def take_ports(self, count: int, taken: Collection[int]) -> list[int]:
        """Ports the kernel gives out as free now."""
        sockets: list[socket.socket] = []
        ports: list[int] = []
        try:
            while len(ports) < count:
                found = socket.socket()
                sockets.append(found)  # kept open, so that the kernel gives no port twice
                found.bind((_HOST, 0))
                port = found.getsockname()[1]
                if port not in taken:
                    ports.append(port)
        finally:
            for found in sockets:
                found.close()
        return ports

    def host_of(self, uid: str, role: str, index: int, node: str) -> str:
        """The loopback address; replicas differ in their ports."""
        return _HOST

    def start(self, run: Run) -> None:
        """Hands the run to a shim, which starts it at most once."""
        self._watched.setdefault(run.id, False)
        try:
            place = self._place(run.id)
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
            self._prepare(run, place)
            command = [sys.executable, "-I", "-S", str(Path(shim.__file__)), str(place)]
            self._starting[run.id] = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        except OSError as error:
            self._failed.append(RunReport(run.id, self._clock(), exit_code=_NOT_STARTED, reason=f"StartError: {error}"))

    def watch(self, run_id: RunId) -> None:
        """Goes on reporting about a run."""
        self._watched.setdefault(run_id, True)

    def stop(self, run_id: RunId, *, force: bool) -> None:
        """Signals the run's whole process group."""
        found = self._read(self._place(run_id) / "running")
        if found is not None and shim.start_ticks(int(found["pid"])) == int(found["ticks"]):
            with contextlib.suppress(ProcessLookupError):  # it just ended by itself
                os.killpg(int(found["pid"]), signal.SIGKILL if force else signal.SIGTERM)

    def poll(self) -> list[RunReport]:
        """Reads what shims wrote; a run whose shim is gone without a word is reported as lost."""
        self._reap()
        reports, self._failed = self._failed, []
        for report in reports:
            self._watched.pop(report.id, None)
        looks_for_lost = self._clock() >= self._looked_s + _LOOK_FOR_LOST_EVERY_S
        for run_id, was_reported in list(self._watched.items()):
            place = self._place(run_id)
            if not was_reported:
                running = self._read(place / "running")
                if running is not None:
                    self._watched[run_id] = True
                    reports.append(RunReport(run_id, float(running["at_s"]), pid=int(running["pid"])))
            ended = self._read(place / "exit")
            if ended is None and looks_for_lost and run_id not in self._starting and not self._is_alive(place):
                ended = self._read(place / "exit") or self._bury(place)
            if ended is not None:
                del self._watched[run_id]
                reason = str(ended.get("reason", ""))
                code = int(ended["exit_code"])
                reports.append(RunReport(run_id, float(ended["at_s"]), exit_code=code, reason=reason))
        if looks_for_lost:
            self._looked_s = self._clock()
        return reports

    def remove(self, uid: str) -> None:
        """Removes a job's directory."""
        shutil.rmtree(self._directory / "runs" / uid, ignore_errors=True)

    def sweep(self, kept: Collection[str]) -> None:
        """Removes what is left of jobs that are not among `kept`: a controller died before it could."""
        for place in (self._directory / "runs").glob("*"):
            if place.name not in kept:
                self.remove(place.name)

    @staticmethod
    def log_path_in(directory: Path, uid: str, role: str, index: int) -> Path:
        """Where a replica's output goes, of all its attempts."""
        return directory / "runs" / uid / f"{role.lower()}-{index}" / "log"

    def code_path(self, uid: str) -> Path:
        """Where a job's code is put."""
        return self._directory / "runs" / uid / "code"

    def _reap(self) -> None:
        """Waits for shims that have left us; one that could not start its run said nothing, so we do."""
        for run_id, process in list(self._starting.items()):
            code = process.poll()
            if code is None:
                continue
            del self._starting[run_id]
            if code != 0 and not (self._place(run_id) / "started").exists():
                reason = f"StartError: the shim ended with code {code}"
                self._failed.append(RunReport(run_id, self._clock(), exit_code=_NOT_STARTED, reason=reason))

    def _place(self, run_id: RunId) -> Path:
        return self._directory / "runs" / str(run_id)

    def _prepare(self, run: Run, place: Path) -> None:
        if (place / "started").exists():
            return
        for name, text in run.files.items():
            (place / name).write_text(text, encoding="utf-8")
            (place / name).chmod(0o700)
        values = {name: text.replace("$MILLPOND_JOB_DIR", str(place)) for name, text in run.env.items()}
        code = self.code_path(run.id.uid)
        code.mkdir(exist_ok=True, mode=0o700)
        description = {
            "command": list(run.command),
            "env": values | {"MILLPOND_JOB_DIR": str(place)},
            "working_dir": str(code / run.working_dir),  # an absolute one stays as it is
            "log": str(self.log_path_in(self._directory, run.id.uid, run.id.role, run.id.index)),
            "wake": str(self.wake_path),
        }
        written = place / "run.json.new"
        written.write_text(json.dumps(description), encoding="utf-8")
        written.chmod(0o600)
        written.rename(place / "run.json")

    def _is_alive(self, place: Path) -> bool:
        """Whether a shim holds the run's lock."""
        try:
            descriptor = os.open(place / "lock", os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def _bury(self, place: Path) -> dict[str, Any]:
        """A shim was killed: end what it left and say so."""
        running = self._read(place / "running")
        if running is not None and shim.start_ticks(int(running["pid"])) == int(running["ticks"]):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(int(running["pid"]), signal.SIGKILL)
        return {"exit_code": _LOST, "at_s": self._clock(), "reason": "Lost"}

    @staticmethod
    def _read(path: Path) -> dict[str, Any] | None:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        return found if isinstance(found, dict) else None

"""The controller as a process: one per data directory, woken by a pipe, started by whoever submits first.

Owns the directory's layout, the lock that keeps a second controller out, and the loop. Called by the command line
(foreground), and by `ensure_controller` (background, through `python -m millpond.jobs.service`).
"""

from __future__ import annotations

import argparse
import contextlib
import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from millpond.base.errors import MillpondError
from millpond.jobs.cluster_file import ClusterSettings, read_cluster, read_database
from millpond.jobs.clusters.local import LocalCluster
from millpond.jobs.collecting import Collecting
from millpond.jobs.controller import Controller, ControllerParts
from millpond.jobs.scheduling.log import DecisionLog
from millpond.jobs.scheduling.scheduler import Scheduler
from millpond.jobs.scheduling.turn import SchedulerLimits
from millpond.jobs.store import JobStore
from millpond.jobs.store_database import StoreClaimedError, StoreUnavailableError

_IDLE_EXIT_S = 60.0
_RETRY_S = 1.0
_LONGEST_SLEEP_S = 1.0  # a shim that was killed wakes nobody
_KEPT_LOGS = 5
_START_NAPS, _NAP_S = 750, 0.02  # counted, not timed: a machine that stood still has not waited
_ERROR = "Error: "
_ELSEWHERE = "Elsewhere: "


class ControllerRunningError(MillpondError):
    """Another controller has the directory."""

    code = "controller_running"


@dataclass(frozen=True, slots=True)
class JobsPlace:
    """The files of a jobs directory."""

    root: Path

    @property
    def database(self) -> Path:
        """The file for jobs, events and records."""
        return self.root / "jobs.sqlite"

    @property
    def jobs_database(self) -> Path | str:
        """Where jobs are kept: the file, or the database that `cluster.yaml` names."""
        return read_database(self.settings) or self.database

    @property
    def lock(self) -> Path:
        """Held by the controller for as long as it lives."""
        return self.root / "controller.lock"

    @property
    def wake(self) -> Path:
        """A pipe; a byte in it means: there is news."""
        return self.root / "wake"

    @property
    def log(self) -> Path:
        """What the controller has to say."""
        return self.root / "controller.log"

    @property
    def settings(self) -> Path:
        """What the cluster offers; may be absent."""
        return self.root / "cluster.yaml"

    @property
    def decisions(self) -> Path:
        """Logs of the scheduler's decisions, one for each life of a controller."""
        return self.root / "decisions"


@dataclass(frozen=True, slots=True)
class ServiceOptions:
    """How a controller runs. None: as `cluster.yaml` and the machine say."""

    slots: float | None = None
    devices: int | None = None
    exits_when_idle: bool = False


def run_controller(place: JobsPlace, options: ServiceOptions, say: Callable[[str], None]) -> bool:
    """Runs until a signal comes, or until there is nothing to do for a while.

    Returns:
        Whether it ended because there was nothing to do.

    Raises:
        ControllerRunningError: The directory has a controller.
    """
    place.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    settings = read_cluster(place.settings, socket.gethostname(), options.slots, options.devices)
    with _sole(place), _pipe(place) as pipe:
        stopping: list[int] = []

        def stop(number: int, _frame: object) -> None:
            stopping.append(number)
            _poke(place.wake)

        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, stop)
        store = JobStore(place.jobs_database)
        try:
            while not stopping:
                try:
                    _claim(store)
                    with _controller(place, store, settings) as controller, Collecting() as collecting:
                        say(f"The controller of {place.root} runs, with {settings.node.cpus:g} slots.")
                        _loop(controller, collecting, pipe, options, stopping)
                    break
                except StoreUnavailableError as error:
                    # What was not saved did not happen: the next controller reads everything anew, as after a crash.
                    say(f"{error} It is tried again.")
                    select.select([pipe], [], [], _RETRY_S)
        finally:
            store.close()
    return not stopping


def _claim(store: JobStore) -> None:
    try:
        store.claim()
    except StoreClaimedError as error:
        raise ControllerRunningError(str(error)) from None


@contextlib.contextmanager
def _controller(place: JobsPlace, store: JobStore, settings: ClusterSettings) -> Iterator[Controller]:
    """A controller that has taken up what the store and the machine know."""
    cluster = LocalCluster(place.root, settings.node, time.time)
    with _decision_log(place) as log:
        log.begin(SchedulerLimits())
        scheduler = Scheduler(SchedulerLimits(), log)
        parts = ControllerParts(store, cluster, scheduler, time.time, _make_uid, settings.tenants)
        controller = Controller(parts)
        controller.recover()
        cluster.sweep(controller.jobs)
        store.set_fact("nodes", _describe(cluster))
        yield controller


def _loop(
    controller: Controller, collecting: Collecting, pipe: int, options: ServiceOptions, stopping: list[int]
) -> None:
    busy_s = time.monotonic()
    while not stopping:
        controller.cycle()
        if not controller.is_idle:
            busy_s = time.monotonic()
        elif options.exits_when_idle and time.monotonic() - busy_s > _IDLE_EXIT_S:
            return
        collecting.rest(time.monotonic(), is_idle=controller.is_idle)
        next_s = controller.next_time()
        wait_s = _LONGEST_SLEEP_S if next_s is None else min(_LONGEST_SLEEP_S, max(0.01, next_s - time.time()))
        if select.select([pipe], [], [], wait_s)[0]:
            os.read(pipe, 4096)


def ensure_controller(place: JobsPlace) -> None:
    """Starts a controller in the background if the directory has none, and wakes the one it has.

    Raises:
        MillpondError: It did not start; says why.
    """
    place.root.mkdir(parents=True, exist_ok=True, mode=0o700)
    if not is_running(place):
        _start_in_background(place)
    _poke(place.wake)


def _start_in_background(place: JobsPlace) -> None:
    # The shell leaves at once, so that the controller is nobody's child and nobody's zombie.
    command = ["/bin/sh", "-c", '"$@" &', "sh", sys.executable, "-m", "millpond.jobs.service", str(place.root)]
    with open(place.log, "ab") as log:
        before = log.tell()
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    for _ in range(_START_NAPS):
        if is_running(place):
            return
        said = place.log.read_bytes()[before:].decode("utf-8", "replace")
        reason = next((line for line in said.splitlines() if line.startswith(_ERROR)), None)
        if reason is not None:
            raise MillpondError(f"The controller did not start: {reason.removeprefix(_ERROR)}")
        if _ELSEWHERE in said:
            return  # one on another machine works on the same database
        time.sleep(_NAP_S)
    raise MillpondError("The controller did not start.", fix=f"See {place.log}.")


def has_work(place: JobsPlace) -> bool:
    """Whether the directory has jobs that need a controller."""
    location = place.jobs_database
    if isinstance(location, Path) and not location.exists():
        return False
    store = JobStore(location)
    try:
        return store.has_work()
    finally:
        store.close()


def is_running(place: JobsPlace) -> bool:
    """Whether a controller holds the directory."""
    try:
        descriptor = os.open(place.lock, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def controller_pid(place: JobsPlace) -> int | None:
    """The process id of the controller that runs, if one does."""
    text = place.lock.read_text(encoding="utf-8") if is_running(place) else ""
    return int(text) if text.isdigit() else None


@contextlib.contextmanager
def _sole(place: JobsPlace) -> Iterator[None]:
    descriptor = os.open(place.lock, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        for _ in range(50):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.01)  # somebody may just be looking
        else:
            raise ControllerRunningError(f"{place.root} has a controller already.", fix="Use it, or stop it first.")
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _pipe(place: JobsPlace) -> Iterator[int]:
    with contextlib.suppress(FileExistsError):
        os.mkfifo(place.wake, 0o600)
    descriptor = os.open(place.wake, os.O_RDWR | os.O_NONBLOCK)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _poke(fifo: Path) -> None:
    with contextlib.suppress(OSError):
        descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(descriptor, b"x")
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def _decision_log(place: JobsPlace) -> Iterator[DecisionLog]:
    place.decisions.mkdir(exist_ok=True, mode=0o700)
    for old in sorted(place.decisions.glob("*.jsonl"))[: -(_KEPT_LOGS - 1)]:
        old.unlink()
    with open(place.decisions / f"{time.time_ns():020d}.jsonl", "wb", buffering=0) as file:

        def write(line: bytes) -> None:
            file.write(line + b"\n")

        yield DecisionLog(write)


def _describe(cluster: LocalCluster) -> str:
    """The nodes as readers of the store see them."""
    return json.dumps(
        [
            {
                "name": node.name,
                "address": "127.0.0.1",
                "cpus": node.cpus,
                "memory_bytes": node.memory_bytes,
                "devices": node.wiring.num_devices,
                "device_type": node.device_type or "",
            }
            for node in cluster.nodes()
        ]
    )


def _make_uid() -> str:
    return uuid.uuid4().hex


def _main() -> int:
    parser = argparse.ArgumentParser(description="Runs the jobs controller in the background.")
    parser.add_argument("root", type=Path)
    place = JobsPlace(parser.parse_args().root)
    options = ServiceOptions(exits_when_idle=True)
    try:
        # Somebody may have submitted while it made up its mind to leave, and seen the lock still held.
        while run_controller(place, options, lambda line: print(line, flush=True)) and has_work(place):
            pass
    except ControllerRunningError as error:
        print(f"{_ELSEWHERE}{error}", flush=True)
        return 0  # another submit was faster
    except MillpondError as error:
        print(f"{_ERROR}{error}", flush=True)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(_main())

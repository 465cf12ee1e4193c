"""A controller with its store and scheduler on a fake cluster, under a clock of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

from millpond.api.job import JobStatus
from millpond.jobs.controller import Controller, ControllerParts
from millpond.jobs.scheduling.log import DecisionLog
from millpond.jobs.scheduling.scheduler import Scheduler
from millpond.jobs.scheduling.types import TenantSpec
from millpond.jobs.spec import load_jobs
from millpond.jobs.state import make_job_state
from millpond.jobs.status import job_status
from millpond.jobs.store import JobStore
from tests.support.fake_cluster import FakeCluster


class JobsRoom:
    """Submits, turns the crank, kills the controller."""

    def __init__(
        self, location: Path | str, cpus: float = 8.0, devices: int = 0, tenants: tuple[TenantSpec, ...] = ()
    ) -> None:
        self.now_s = 1_790_000_000.0
        self.cluster = FakeCluster(lambda: self.now_s, cpus, devices)
        self.log: list[bytes] = []
        self._location = location
        self._tenants = tenants
        self._uids = map("uid{:05d}".format, itertools.count())
        self.store = JobStore(location)
        self.scheduler = Scheduler()
        self.controller = self._make_controller()

    def submit(self, text: str) -> list[str]:
        """Submits the jobs of a YAML text and returns their uids."""
        states = [make_job_state(spec, next(self._uids), self.now_s, "/home") for spec in load_jobs(text)]
        self.store.submit(states)
        return [state.uid for state in states]

    def turn(self, seconds: float = 0.1, cycles: int = 3) -> None:
        """Lets time pass and the controller work."""
        for _ in range(cycles):
            self.now_s += seconds
            self.controller.cycle()
            self.scheduler.check_integrity()

    def settle(self, limit: int = 400, is_over: Callable[[], bool] | None = None) -> None:
        """Turns until nothing is left to do."""
        for _ in range(limit):
            self.turn(5.0, 1)
            if is_over() if is_over is not None else self.controller.is_idle:
                return
        raise AssertionError("the controller does not come to rest")

    def restart(self) -> None:
        """Kills the controller, wherever it is, and starts another one."""
        self.store.close()
        self.cluster.forget_controller()
        self.store = JobStore(self._location)
        self.controller = self._make_controller()

    def status(self, name: str) -> JobStatus:
        """How a job goes."""
        record = self.store.find(name)[0]
        return job_status(record.state, record.explanation)

    def _make_controller(self) -> Controller:
        self.log = []
        self.scheduler = Scheduler(log=DecisionLog(self.log.append))
        parts = ControllerParts(
            self.store, self.cluster, self.scheduler, lambda: self.now_s, lambda: next(self._uids), self._tenants
        )
        self.store.claim()
        controller = Controller(parts)
        controller.recover()
        return controller

"""`SimulatedCluster`: discrete events around the real scheduler, no process, no clock.

Owns virtual time: arrivals, starts, ends, evictions, losses of nodes. Decisions come from the same `Scheduler` that
runs live, fed with the same events, so a log of a simulation replays like any other. How long a job takes is either
given or follows from its step model on the devices it got. Called by tests and by `bench.jobs`.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from millpond.jobs.scheduling.cost import ring_traffic
from millpond.jobs.scheduling.scheduler import Scheduler
from millpond.jobs.scheduling.types import (
    Decision,
    Event,
    Evicted,
    Expire,
    Finished,
    GangRequest,
    NodeJoined,
    NodeSpec,
    Preempt,
    Reclaim,
    Release,
    Reserve,
    Started,
    Submitted,
)


@dataclass(frozen=True, slots=True)
class SimulatedJob:
    """A job and how long it really takes; None: as long as its step model says for its placement."""

    request: GangRequest
    run_s: float | None = None


@dataclass(slots=True)
class JobRecord:
    """What became of a job.

    Attributes:
        submitted_s: When it came.
        reserved_s: When it last got its cells.
        started_s: When every role ran; None before that.
        ended_s: When it was over; None when it never was.
        devices: How many devices it holds.
        direct, host, network: Edges of its ring by the kind of wire.
        nodes: Machines it runs on.
        run_s: How long it ran, the last time.
        lost_s: Device-seconds thrown away by evictions.
        starts: How often it was started.
    """

    submitted_s: float
    devices: int = 0
    reserved_s: float | None = None
    started_s: float | None = None
    ended_s: float | None = None
    direct: int = 0
    host: int = 0
    network: int = 0
    nodes: int = 0
    run_s: float = 0.0
    lost_s: float = 0.0
    starts: int = 0


@dataclass(slots=True)
class SimulationReport:
    """All jobs and how much was simulated."""

    jobs: dict[str, JobRecord] = field(default_factory=dict)
    num_events: int = 0
    num_steps: int = 0
    evictions: int = 0
    end_s: float = 0.0


class SimulatedCluster:
    """A cluster in virtual time.

    Args:
        nodes: The machines, all there from the start.
        scheduler: The scheduler to drive; a fresh one.
        start_delay_s: Time between the release of a role and its processes running.
        stop_delay_s: Time an evicted job takes to leave.
    """

    def __init__(
        self,
        nodes: Iterable[NodeSpec],
        scheduler: Scheduler,
        *,
        start_delay_s: float = 0.0,
        stop_delay_s: float = 0.0,
    ) -> None:
        self.scheduler = scheduler
        self.report = SimulationReport()
        self._start_delay_s = start_delay_s
        self._stop_delay_s = stop_delay_s
        self._queue: list[tuple[float, int, Event]] = []
        self._count = 0
        self._jobs: dict[str, SimulatedJob] = {}
        for node in nodes:
            self.scheduler.apply(NodeJoined(node), 0.0)

    def run(self, jobs: Sequence[SimulatedJob], extra: Iterable[tuple[float, Event]] = ()) -> SimulationReport:
        """Runs until nothing is left to happen.

        Args:
            jobs: What is submitted, at the time each request names.
            extra: Other events by time: nodes lost and joined, tenants changed, jobs cancelled.
        """
        for job in jobs:
            self._jobs[job.request.job_id] = job
            self.report.jobs[job.request.job_id] = JobRecord(job.request.submitted_s)
            self._at(job.request.submitted_s, Submitted(job.request))
        for time_s, event in extra:
            self._at(time_s, event)
        while self._queue:
            now_s = self._queue[0][0]
            while self._queue and self._queue[0][0] == now_s:
                self._apply(heapq.heappop(self._queue)[2], now_s)
            for decision in self.scheduler.step(now_s):
                self._carry_out(decision, now_s)
            self.report.num_steps += 1
            self.report.end_s = now_s
        return self.report

    def _at(self, time_s: float, event: Event) -> None:
        self._count += 1
        heapq.heappush(self._queue, (time_s, self._count, event))

    def _apply(self, event: Event, now_s: float) -> None:
        self.report.num_events += 1
        if isinstance(event, Finished):
            state = self.scheduler.state.jobs.get(event.job_id)
            if state is not None and state.epoch == event.epoch and event.job_id in self.scheduler.state.holding:
                self.report.jobs[event.job_id].ended_s = now_s
        self.scheduler.apply(event, now_s)
        if isinstance(event, Started):
            self._after_start(event, now_s)

    def _after_start(self, event: Started, now_s: float) -> None:
        """Once the last role runs, the end of the job is known."""
        state = self.scheduler.state.jobs[event.job_id]
        record = self.report.jobs[event.job_id]
        if state.epoch != event.epoch or state.started_s != now_s or state.placement is None:
            return
        record.started_s = now_s
        record.starts += 1
        job = self._jobs[event.job_id]
        step = job.request.step
        run_s = job.run_s
        if run_s is None:
            assert step is not None, "a job without a length needs a step model"
            run_s = state.placement.step_s * step.num_steps
        record.run_s = run_s
        self._at(now_s + run_s, Finished(event.job_id, event.epoch))

    def _carry_out(self, decision: Decision, now_s: float) -> None:
        match decision:
            case Reserve(job_id):
                self._record_reserve(job_id, now_s)
            case Release(job_id, epoch, role):
                self._at(now_s + self._start_delay_s, Started(job_id, epoch, role))
            case Preempt(job_ids, epochs) | Reclaim(job_ids, epochs):
                for job_id, epoch in zip(job_ids, epochs, strict=True):
                    self._stop(job_id, epoch, now_s)
            case Expire(job_id, epoch, _, must_stop):
                if must_stop:
                    self._stop(job_id, epoch, now_s)

    def _stop(self, job_id: str, epoch: int, now_s: float) -> None:
        record = self.report.jobs[job_id]
        if record.started_s is not None:
            record.lost_s += (now_s - record.started_s) * record.devices
        self.report.evictions += 1
        self._at(now_s + self._stop_delay_s, Evicted(job_id, epoch))

    def _record_reserve(self, job_id: str, now_s: float) -> None:
        placement = self.scheduler.state.jobs[job_id].placement
        assert placement is not None, "a reserved job has a placement"
        record = self.report.jobs[job_id]
        record.reserved_s = now_s
        record.devices = sum(part.mask.bit_count() for part in placement.parts)
        record.nodes = len(placement.parts)
        if placement.parts:
            traffic = ring_traffic(placement.parts)
            record.direct, record.host, record.network = traffic.direct, traffic.host, traffic.network

"""A scheduler with its log, driven by hand: submits, starts what is released, checks the books after every step."""

from __future__ import annotations

from typing import Any

from millpond.api.topology import NodeWiring, dgx1v_wiring, plain_wiring
from millpond.jobs.scheduling.log import DecisionLog, replay
from millpond.jobs.scheduling.scheduler import Scheduler
from millpond.jobs.scheduling.state import JobState
from millpond.jobs.scheduling.turn import SchedulerLimits
from millpond.jobs.scheduling.types import (
    Decision,
    Event,
    Evicted,
    Expire,
    Finished,
    GangRequest,
    JobStatus,
    NodeJoined,
    NodeSpec,
    Preempt,
    Reclaim,
    Release,
    Reserve,
    ResourceRequest,
    RoleRequest,
    Started,
    StartEdge,
    Submitted,
    TenantChanged,
    TenantSpec,
)


def role(name: str, replicas: int, devices: int = 0, *, cpus: float = 0.0, after: str = "", **more: Any) -> RoleRequest:
    """A role that starts after another one runs."""
    edges = (StartEdge(after),) if after else ()
    need = ResourceRequest(devices, more.pop("device_type", None), cpus)
    return RoleRequest(name, replicas, need, after=edges, **more)


def gang(job_id: str, *roles: RoleRequest, tenant: str = "team", **more: Any) -> GangRequest:
    """A job of some roles."""
    return GangRequest(job_id, tenant, roles, **more)


def workers(job_id: str, replicas: int, devices: int = 1, **more: Any) -> GangRequest:
    """A job of equal workers."""
    return gang(job_id, role("worker", replicas, devices), **more)


class Bench:
    """A scheduler on a table: every step is checked and logged."""

    def __init__(self, limits: SchedulerLimits | None = None) -> None:
        self.lines: list[bytes] = []
        log = DecisionLog(self.lines.append)
        log.begin(limits or SchedulerLimits())
        self.scheduler = Scheduler(limits, log)
        self.now_s = 0.0
        self.decisions: list[Decision] = []

    def nodes(self, count: int, wiring: NodeWiring | None = None, **more: Any) -> None:
        """Adds nodes n0, n1, ..., eight devices each unless a wiring says otherwise."""
        start = len(self.scheduler.state.cells.nodes)
        more.setdefault("cpus", 64.0)
        for index in range(start, start + count):
            self.tell(NodeJoined(NodeSpec(f"n{index}", wiring or dgx1v_wiring(), **more)))

    def small_nodes(self, count: int, devices: int, **more: Any) -> None:
        """Adds nodes of a few devices below one PCIe switch."""
        self.nodes(count, plain_wiring(devices), **more)

    def tenant(self, name: str, guaranteed: float | None = None, **more: Any) -> None:
        """Adds a tenant with a guarantee of devices."""
        quota = {} if guaranteed is None else {"devices": guaranteed}
        self.tell(TenantChanged(TenantSpec(name, guaranteed=quota, **more)))

    def tell(self, event: Event) -> None:
        """Applies one event."""
        self.scheduler.apply(event, self.now_s)
        self.scheduler.check_integrity()

    def submit(self, *requests: GangRequest) -> None:
        """Submits jobs."""
        for request in requests:
            self.tell(Submitted(request))

    def step(self, advance_s: float = 0.0) -> list[Decision]:
        """Moves the clock and makes one step."""
        self.now_s += advance_s
        made = self.scheduler.step(self.now_s)
        self.scheduler.check_integrity()
        self.decisions += made
        return made

    def settle(self, advance_s: float = 0.0, *, start: bool = True) -> list[Decision]:
        """Steps until nothing more happens: starts what is released and clears out who must leave."""
        self.now_s += advance_s
        seen: list[Decision] = []
        for _ in range(1000):
            made = self.step()
            if not made:
                return seen
            seen += made
            for decision in made:
                match decision:
                    case Release(job_id, epoch, name) if start:
                        self.tell(Started(job_id, epoch, name))
                    case Preempt(job_ids, epochs) | Reclaim(job_ids, epochs):
                        for job_id, epoch in zip(job_ids, epochs, strict=True):
                            self.tell(Evicted(job_id, epoch))
                    case Expire(job_id, epoch, _, True):
                        self.tell(Evicted(job_id, epoch))
                    case _:
                        pass
        raise AssertionError("the scheduler never comes to rest")

    def finish(self, *job_ids: str) -> None:
        """Ends running jobs."""
        for job_id in job_ids:
            self.tell(Finished(job_id, self.job(job_id).epoch))

    def job(self, job_id: str) -> JobState:
        """The state of one job."""
        return self.scheduler.state.jobs[job_id]

    def status(self, job_id: str) -> JobStatus:
        """The status of one job."""
        return self.job(job_id).status

    def shape(self, job_id: str) -> list[int]:
        """Devices of a job by node, in ring order."""
        placement = self.job(job_id).placement
        assert placement is not None
        return [part.mask.bit_count() for part in placement.parts]

    def reserved(self) -> list[str]:
        """Jobs in the order of their reservations."""
        return [decision.job_id for decision in self.decisions if isinstance(decision, Reserve)]

    def evicted(self) -> list[str]:
        """Jobs that had to leave for another one."""
        return [name for made in self.decisions if isinstance(made, Preempt | Reclaim) for name in made.job_ids]

    def replay(self) -> None:
        """Replays everything so far and fails when a decision differs."""
        replay(self.lines)

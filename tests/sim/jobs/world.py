"""A small world around the scheduler for random histories: slow, repeated and lost events, nodes that die, restarts.

Plays the controller and the cluster: keeps the processes that really run, by job and epoch, and checks every decision
against them. What it asserts are the promises of the scheduler, told from outside.
"""

from __future__ import annotations

from collections.abc import Sequence

from millpond.api.topology import dgx1v_wiring, plain_wiring
from millpond.jobs.scheduling.scheduler import Scheduler
from millpond.jobs.scheduling.types import (
    AggregationRequest,
    Cancelled,
    Decision,
    Event,
    Evicted,
    Expire,
    Finished,
    GangRequest,
    JobStatus,
    NodeCordoned,
    NodeJoined,
    NodeLost,
    NodeSpec,
    Phase,
    Preempt,
    Reclaim,
    Release,
    Reserve,
    ResourceRequest,
    Restored,
    RoleRequest,
    Started,
    StartEdge,
    StartFailed,
    StepModel,
    Submitted,
    TenantChanged,
    TenantSpec,
)
from tests.support.gangs import Bench

TENANTS = (
    TenantSpec("org", maximum={"devices": 20.0}),
    TenantSpec("red", "org", {"devices": 6.0}, {"devices": 12.0}),
    TenantSpec("blue", "org", {"devices": 6.0}, weight=2.0),
    TenantSpec("fixed", None, {"devices": 4.0}, can_borrow=False),
    TenantSpec("keeper", None, {"devices": 2.0}, can_lend=False),
)
Act = tuple[str, int, int]


def node_spec(index: int) -> NodeSpec:
    """Three kinds of machines in two racks."""
    wiring = dgx1v_wiring() if index == 0 else plain_wiring((0, 4, 4, 2)[index % 4])
    kind = ("V100", "T4", "T4", None)[index % 4]
    return NodeSpec(f"n{index}", wiring, kind, 16.0, 1 << 30, f"r{index % 2}")


def request_of(number: int, seed: int, now_s: float) -> GangRequest:
    """A job made from a number: every bit decides something."""
    devices = (1, 1, 2, 4)[seed % 4]
    replicas = 1 + seed // 4 % 6
    kind = (None, None, "V100", "T4")[seed // 24 % 4]
    worker = RoleRequest(
        "worker",
        replicas,
        ResourceRequest(devices, kind, 1.0, 1 << 20),
        min_replicas=1 if seed % 7 == 0 else None,
        after=(StartEdge("ps"),) if seed % 3 == 0 else (),
    )
    helper = RoleRequest("ps", 1 + seed % 2, ResourceRequest(cpus=float(1 + seed % 4)))
    aggregated = devices == 1 and seed % 5 == 0
    return GangRequest(
        f"j{number}",
        ("red", "blue", "fixed", "keeper")[seed // 96 % 4],
        (helper, worker) if seed % 3 == 0 else (worker,),
        priority=seed // 7 % 3,
        submitted_s=now_s,
        run_s_estimate=None if seed % 4 == 0 else float(1 + seed % 50),
        preemptible=seed % 11 != 0,
        spot=seed % 13 == 0,
        aggregation=AggregationRequest("worker") if aggregated else None,
        step=StepModel(0.01, 100_000_000, 0.5, 1 + seed % 3000) if seed % 2 else None,
        start_timeout_s=20.0,
    )


class World:
    """Drives one history."""

    def __init__(self) -> None:
        self.bench = Bench()
        self.alive: dict[str, int] = {}  # job -> epoch whose processes run
        self.inbox: list[Event] = []  # events on their way to the scheduler
        self.sent: list[Event] = []
        self.leaving: set[tuple[str, int]] = set()
        self.ended: set[tuple[str, int]] = set()
        self.over: set[str] = set()
        self.cancelled: set[str] = set()
        self.requests: dict[str, GangRequest] = {}
        self.reserved: set[tuple[str, int]] = set()
        for tenant in TENANTS:
            self.bench.tell(TenantChanged(tenant))
        for index in range(5):
            self.bench.tell(NodeJoined(node_spec(index)))

    @property
    def scheduler(self) -> Scheduler:
        return self.bench.scheduler

    def play(self, acts: Sequence[Act]) -> None:
        """Plays a history and then lets it run out."""
        for name, one, other in acts:
            getattr(self, f"do_{name}")(one, other)
        self.run_out()

    def do_submit(self, seed: int, _: int) -> None:
        request = request_of(len(self.requests), seed, self.bench.now_s)
        self.requests[request.job_id] = request
        self.bench.tell(Submitted(request))

    def do_step(self, seconds: int, _: int) -> None:
        for decision in self.bench.step(float(seconds % 8)):
            self.obey(decision)
        self.check_quota()

    def do_deliver(self, which: int, repeat: int) -> None:
        """Hands over one event out of turn, sometimes twice."""
        if not self.inbox:
            return
        event = self.inbox.pop(which % len(self.inbox))
        self.hand_over(event)
        if repeat % 3 == 0:
            self.hand_over(event)

    def do_again(self, which: int, _: int) -> None:
        """An old event comes once more."""
        if self.sent:
            self.bench.tell(self.sent[which % len(self.sent)])

    def do_finish(self, which: int, fails: int) -> None:
        running = [job for job, epoch in self.alive.items() if (job, epoch) not in self.leaving]
        if not running:
            return
        job = running[which % len(running)]
        epoch = self.alive.pop(job)
        self.ended.add((job, epoch))
        if fails % 5 == 0:
            self.inbox.append(StartFailed(job, epoch, "broken"))
        else:
            self.inbox.append(Finished(job, epoch, fails % 2 == 0))
            self.over.add(job)

    def do_lose(self, which: int, _: int) -> None:
        self.bench.tell(NodeLost(f"n{which % 5}"))

    def do_join(self, which: int, _: int) -> None:
        self.bench.tell(NodeJoined(node_spec(which % 5)))

    def do_cordon(self, which: int, flag: int) -> None:
        self.bench.tell(NodeCordoned(f"n{which % 5}", flag % 2 == 0))

    def do_cancel(self, which: int, _: int) -> None:
        if self.requests:
            job = f"j{which % len(self.requests)}"
            self.cancelled.add(job)
            self.bench.tell(Cancelled(job))

    def do_restart(self, _: int, __: int) -> None:
        """The controller is killed: a new scheduler is told what the store and the cluster know."""
        old = self.scheduler.state
        fresh = Bench()
        fresh.now_s = self.bench.now_s
        for tenant in TENANTS:
            fresh.tell(TenantChanged(tenant))
        for node in old.cells.nodes:
            if not node.lost:
                fresh.tell(NodeJoined(node.spec))
                fresh.tell(NodeCordoned(node.spec.name, node.cordoned))
        for job_id, job in sorted(old.holding.items(), key=lambda item: item[1].status is JobStatus.LEAVING):
            if job.placement is not None:
                held = {old.cells.nodes[grain.node].spec.name for grain in job.grains}
                still = {
                    name: tuple(placement for placement in group if placement.node in held)
                    for name, group in job.placement.roles.items()
                }
                fresh.tell(
                    Restored(
                        job.request, job.epoch, still, job.expires_s, frozenset(job.released),
                        frozenset(name for name, phase in job.phases.items() if phase is not Phase.CREATED),
                        job.started_s, job.status is JobStatus.LEAVING,
                    )
                )  # fmt: skip
            if job.is_cancelled:
                fresh.tell(Cancelled(job_id))
        for job in old.pending.values():
            fresh.tell(Submitted(job.request, job.epoch))
        self.bench = fresh
        for decision in fresh.step():
            self.obey(decision)

    def obey(self, decision: Decision) -> None:
        """Does what the scheduler says and checks that it may say so."""
        match decision:
            case Reserve(job, epoch, placements):
                assert (job, epoch) not in self.reserved, f"{job} got epoch {epoch} twice"
                assert job not in self.alive, f"{job} is started twice"
                assert job not in self.over, f"{job} is over and starts again"
                self.reserved.add((job, epoch))
                for role in self.requests[job].roles:
                    ranks = sum(placement.num_ranks for placement in placements[role.name])
                    least = role.min_replicas or role.replicas
                    assert least <= ranks <= role.replicas, f"{job} holds {ranks} of {role.replicas} {role.name}"
            case Release(job, epoch, role):
                assert self.alive.get(job, epoch) == epoch, f"{job} is started twice"
                if (job, epoch) not in self.ended:
                    self.alive[job] = epoch
                    self.inbox.append(Started(job, epoch, role))
            case Preempt(jobs, epochs) | Reclaim(jobs, epochs):
                for job, epoch in zip(jobs, epochs, strict=True):
                    self.stop(job, epoch)
            case Expire(job, epoch, _, must_stop):
                if must_stop:
                    self.stop(job, epoch)

    def stop(self, job: str, epoch: int) -> None:
        self.leaving.add((job, epoch))
        if self.alive.get(job) == epoch:
            self.inbox.append(Evicted(job, epoch))

    def hand_over(self, event: Event) -> None:
        if isinstance(event, Evicted) and self.alive.get(event.job_id) == event.epoch:
            del self.alive[event.job_id]
            self.ended.add((event.job_id, event.epoch))
        self.sent.append(event)
        self.bench.tell(event)

    def check_quota(self) -> None:
        """No tenant is above its maximum, nor above its guarantee when it may not borrow."""
        usage = self.scheduler.state.quota.usage
        for tenant in TENANTS:
            held = usage[tenant.name].get("devices", 0.0)
            assert held <= tenant.maximum.get("devices", float("inf")), f"{tenant.name} is over its maximum"
            if not tenant.can_borrow:
                assert held <= tenant.guaranteed["devices"], f"{tenant.name} borrows"

    def run_out(self) -> None:
        """All nodes come back and every job ends; then nothing is held and no job is lost."""
        for index in range(5):
            self.do_join(index, 0)
            self.do_cordon(index, 1)
        for _ in range(40 * (len(self.requests) + 2)):
            while self.inbox:
                self.do_deliver(0, 1)
            self.do_step(1, 0)
            self.do_finish(0, 1)
            if not self.inbox and not self.alive and not self.scheduler.state.holding:
                break
        state = self.scheduler.state
        assert not state.holding, f"{list(state.holding)} never ended"
        for job, request in self.requests.items():
            gone = job in self.over or job in self.cancelled
            assert gone or job in state.pending, f"{job} is lost"
            if not gone:
                assert "never" in (hopeless := self.explain(job)) or "cannot" in hopeless, f"{request}: {hopeless}"
        for node in state.cells.nodes:
            assert node.free.bit_count() == node.spec.wiring.num_devices
        self.bench.replay()

    def explain(self, job: str) -> str:
        explanation = self.scheduler.explain(job, self.bench.now_s)
        assert explanation is not None
        return explanation.message

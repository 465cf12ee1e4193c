"""A small world around the scheduler for random histories: slow, repeated and lost events, nodes that die, restarts.

Plays the controller and the cluster: keeps the processes that really run, by job and epoch, and checks every decision
against them. What it asserts are the promises of the scheduler, told from outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass
class Tally:
    """What happened in some histories, and what must never happen."""

    histories: int = 0
    jobs: int = 0
    reservations: int = 0
    node_losses: int = 0
    kills: int = 0
    api_errors: int = 0
    late_events: int = 0
    partial_hold_s: float = 0.0  # accelerator-seconds that a gang held without the rest of it
    quota_violations: int = 0
    lost_jobs: int = 0
    double_starts: int = 0

    @property
    def broken(self) -> float:
        """Promises that were not kept."""
        return self.partial_hold_s + self.quota_violations + self.lost_jobs + self.double_starts


class World:
    """Drives one history."""

    def __init__(self, tally: Tally | None = None) -> None:
        self.tally = tally or Tally()
        self.tally.histories += 1
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
        self.promised: dict[tuple[str, int], int] = {}  # devices of the whole gang
        self.errors = 0  # so many starts fail, one after the other
        self.unstarted: list[Release] = []  # the API refused them; they are tried again
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
        self.tally.jobs += 1
        self.bench.tell(Submitted(request))

    def do_step(self, seconds: int, _: int) -> None:
        self.count_partial(float(seconds % 8))
        waiting, self.unstarted = self.unstarted, []
        for release in waiting:
            if (release.job_id, release.epoch) not in self.ended:  # nobody asks again on behalf of what has failed
                self.obey(release)
        for decision in self.bench.step(float(seconds % 8)):
            self.obey(decision)
        self.check_quota()

    def do_deliver(self, which: int, repeat: int) -> None:
        """Hands over one event out of turn, sometimes twice."""
        if not self.inbox:
            return
        at = which % len(self.inbox)
        self.tally.late_events += at > 0
        event = self.inbox.pop(at)
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

    def do_error(self, _: int, count: int) -> None:
        """The API of the cluster refuses the next starts."""
        self.errors += 1 + count % 3

    def do_lose(self, which: int, _: int) -> None:
        self.tally.node_losses += 1
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
        self.tally.kills += 1
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
                self.tally.reservations += 1
                twice = (job, epoch) in self.reserved or job in self.alive or job in self.over
                self.tally.double_starts += twice
                assert not twice, f"{job} is started twice, or after its end"
                self.reserved.add((job, epoch))
                self.promised[job, epoch] = sum(len(p.device_ids) for group in placements.values() for p in group)
                for role in self.requests[job].roles:
                    ranks = sum(placement.num_ranks for placement in placements[role.name])
                    least = role.min_replicas or role.replicas
                    assert least <= ranks <= role.replicas, f"{job} holds {ranks} of {role.replicas} {role.name}"
            case Release(job, epoch, role):
                twice = self.alive.get(job, epoch) != epoch
                self.tally.double_starts += twice
                assert not twice, f"{job} is started twice"
                if (job, epoch) in self.ended or (job, epoch) in self.leaving:
                    return
                if self.errors:
                    self.errors -= 1
                    self.tally.api_errors += 1
                    self.unstarted.append(decision)
                else:
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
        if (job, epoch) in self.ended:
            return  # the controller tells how it ended, never that it left: that could come first and start it again
        refused = any((release.job_id, release.epoch) == (job, epoch) for release in self.unstarted)
        if self.alive.get(job) == epoch or refused:
            self.inbox.append(Evicted(job, epoch))

    def hand_over(self, event: Event) -> None:
        if isinstance(event, Evicted):
            if self.alive.get(event.job_id) == event.epoch:
                del self.alive[event.job_id]
            self.ended.add((event.job_id, event.epoch))  # what was refused and then stopped is not asked for again
        self.sent.append(event)
        self.bench.tell(event)

    def check_quota(self) -> None:
        """No tenant is above its maximum, nor above its guarantee when it may not borrow."""
        usage = self.scheduler.state.quota.usage
        for tenant in TENANTS:
            held = usage[tenant.name].get("devices", 0.0)
            self.tally.quota_violations += held > tenant.maximum.get("devices", float("inf"))
            self.tally.quota_violations += not tenant.can_borrow and held > tenant.guaranteed["devices"]
            assert held <= tenant.maximum.get("devices", float("inf")), f"{tenant.name} is over its maximum"
            if not tenant.can_borrow:
                assert held <= tenant.guaranteed["devices"], f"{tenant.name} borrows"

    def count_partial(self, seconds: float) -> None:
        """Adds up what gangs held without the rest of them since the last step."""
        state = self.scheduler.state
        for job_id, job in state.holding.items():
            held = sum(node.get(job_id, 0).bit_count() for node in state.on_node.values())
            if job.status is not JobStatus.LEAVING and 0 < held < self.promised.get((job_id, job.epoch), 0):
                self.tally.partial_hold_s += held * seconds

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
            self.tally.lost_jobs += not (gone or job in state.pending)
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

"""`ClusterState`: jobs, what they hold, and where. Built from events, never from I/O.

Owns the book-keeping that must always add up: a job holds the cells of every role or none, usage of tenants equals what
their jobs hold, and no device has two holders. Knows nothing of order or choice; `check_integrity` proves the rest.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from millpond.jobs.scheduling.cells import Cells, Grain, NodeState, merge_grains, milli
from millpond.jobs.scheduling.dag import releasable
from millpond.jobs.scheduling.place import GangPlacement
from millpond.jobs.scheduling.quota import Charge, QuotaTree, charge_of
from millpond.jobs.scheduling.rings import mask_of
from millpond.jobs.scheduling.types import GangRequest, JobStatus, NodeSpec, Phase, Release

# Jobs that are over and still known, so that a repeated event finds them; the store of the controller keeps all.
_FINISHED_KEPT = 10_000


JobClass = tuple[str, int, bool, bool]  # tenant, priority, spot, preemptible


@dataclass(frozen=True, slots=True)
class FuturePlan:
    """Cells that a waiting job will get: kept from everybody who would still hold them at `start_s`.

    Attributes:
        start_s: When the holders should be gone; infinite when nobody can tell.
        grains: The cells; empty for a job that waits for quota alone.
        charge: What it will be charged.
        kind: `wait`, `eviction`, `shape` (could start now, a better shape is near) or `quota`.
        holders: Jobs that hold some of the cells now.
        end_s: When a job with a step model would be over.
    """

    start_s: float
    grains: tuple[Grain, ...]
    charge: Charge
    kind: str
    holders: tuple[str, ...] = ()
    end_s: float = float("inf")


@dataclass(slots=True)
class JobState:
    """A job as the scheduler knows it."""

    request: GangRequest
    number: int
    status: JobStatus = JobStatus.PENDING
    epoch: int = 0
    placement: GangPlacement | None = None
    grains: list[Grain] = field(default_factory=list)
    charge: Charge = field(default_factory=dict)
    charged_at: tuple[str, ...] = ()
    expires_s: float = float("inf")
    reserved_s: float = 0.0
    started_s: float | None = None
    released: set[str] = field(default_factory=set)
    phases: dict[str, Phase] = field(default_factory=dict)
    is_cancelled: bool = False
    plan: FuturePlan | None = None
    demand: Charge = field(default_factory=dict)
    shape: int = 0
    widest: int = 0  # most devices of one replica
    whole: tuple[int, GangRequest | None] | None = None  # the request on the fewest machines, by size of the machines
    by_parts: dict[int, GangRequest] = field(default_factory=dict)  # the request on so many machines at most
    least_run: tuple[float, float] | None = None  # seconds that any split takes at least, by way out of the cluster
    filed_end_s: float | None = None  # under which the state lists it, while it holds cells
    length_s: float = field(init=False)  # how long the job says that it takes; infinite when it does not say

    def __post_init__(self) -> None:
        estimate = self.request.run_s_estimate
        self.length_s = float("inf") if estimate is None else estimate

    @property
    def predicted_s(self) -> float:
        """How long the job takes where it stands; infinite when it does not say."""
        step, placement = self.request.step, self.placement
        if step is not None and placement is not None and placement.step_s:
            return max(self.length_s, placement.step_s * step.num_steps)
        return self.length_s

    @property
    def planned_end_s(self) -> float:
        """When the job should be over, by what it said before it began."""
        return (self.started_s if self.started_s is not None else self.reserved_s) + self.predicted_s

    def ends_s(self, now_s: float) -> float:
        """When the job should be over; infinite without an estimate, a little later when it is overdue."""
        if self.status is JobStatus.LEAVING:
            return now_s
        return max(self.planned_end_s, now_s + 0.1 * self.predicted_s)

    def lost_work(self, now_s: float) -> float:
        """Device-seconds that are thrown away when the job must stop now."""
        return 0.0 if self.started_s is None else (now_s - self.started_s) * max(self.charge.get("devices", 0.0), 1.0)


class ClusterState:
    """Jobs, cells and quotas together."""

    def __init__(self) -> None:
        self.cells = Cells()
        self.quota = QuotaTree()
        self.jobs: dict[str, JobState] = {}
        self.pending: dict[str, JobState] = {}
        self.holding: dict[str, JobState] = {}
        self.on_node: dict[int, dict[str, int]] = {}
        self.starting: dict[str, JobState] = {}  # reserved, and some role not yet released
        self.leaving: dict[str, JobState] = {}
        self.classes: dict[JobClass, dict[str, JobState]] = {}  # holding jobs, the latest reserved last
        self.ends: list[tuple[float, int, JobState]] = []  # holding jobs by planned end and number
        self._over: deque[str] = deque()

    def hold(self, job: JobState, placement: GangPlacement, now_s: float) -> None:
        """Gives a job the cells that its placement took, and charges its tenant."""
        job.placement = placement
        job.grains = list(placement.grains)
        job.charge = charge_of(self.cells, placement.grains)
        job.charged_at = self.quota.add(job.request.tenant, job.charge)
        job.status = JobStatus.RESERVED
        job.epoch += 1
        job.reserved_s, job.started_s = now_s, None
        job.expires_s = now_s + job.request.start_timeout_s
        job.released.clear()
        job.phases.clear()
        job.plan = None
        self.pending.pop(job.request.job_id, None)
        self.holding[job.request.job_id] = job
        self.starting[job.request.job_id] = job
        self.classes.setdefault(class_of(job.request), {})[job.request.job_id] = job
        self.file_end(job)
        self._note_nodes(job)

    def move(self, job: JobState, placement: GangPlacement) -> None:
        """Records other cells for a job that was just reserved; the cells themselves are the caller's."""
        self.quota.add_at(job.charged_at, job.charge, -1.0)
        for grain in job.grains:
            self.on_node[grain.node].pop(job.request.job_id, None)
        job.placement, job.grains = placement, list(placement.grains)
        job.charge = charge_of(self.cells, placement.grains)
        job.charged_at = self.quota.add(job.request.tenant, job.charge)
        self.file_end(job)
        self._note_nodes(job)

    def file_end(self, job: JobState) -> None:
        """Lists a holding job under its planned end; again whenever that changes."""
        self._unfile_end(job)
        job.filed_end_s = job.planned_end_s
        insort(self.ends, (job.filed_end_s, job.number, job))

    def _unfile_end(self, job: JobState) -> None:
        if job.filed_end_s is not None:
            at = bisect_left(self.ends, (job.filed_end_s, job.number))
            assert self.ends[at][2] is job, "a job is listed under its planned end"
            self.ends.pop(at)
            job.filed_end_s = None

    def _note_nodes(self, job: JobState) -> None:
        for grain in job.grains:
            jobs = self.on_node.setdefault(grain.node, {})
            jobs[job.request.job_id] = jobs.get(job.request.job_id, 0) | grain.mask

    def drop(self, job: JobState, status: JobStatus) -> None:
        """Takes every cell from a job and puts it back in the queue, or ends it."""
        for grain in merge_grains(job.grains):
            self.cells.give(grain)
            self.on_node.get(grain.node, {}).pop(job.request.job_id, None)
        if job.charged_at:
            self.quota.add_at(job.charged_at, job.charge, -1.0)
            self.cells.version += 1
        job.grains, job.charge, job.charged_at, job.placement = [], {}, (), None
        job.started_s, job.expires_s = None, float("inf")
        job.released.clear()
        job.phases.clear()
        job.plan = None
        job.status = status
        job_id = job.request.job_id
        if self.holding.pop(job_id, None) is not None:
            self._unfile_end(job)
            self.starting.pop(job_id, None)
            self._count_out(job)
        self.pending.pop(job_id, None)
        if status is JobStatus.PENDING:
            self.pending[job_id] = job
        else:
            self._over.append(job_id)
            if len(self._over) > _FINISHED_KEPT:
                del self.jobs[self._over.popleft()]

    def mark_leaving(self, job: JobState) -> None:
        """The job must stop; it holds its cells until its processes are gone."""
        job.status = JobStatus.LEAVING
        self.leaving[job.request.job_id] = job

    def release_roles(self) -> list[Release]:
        """Releases every role that may start now."""
        released = []
        for job in list(self.starting.values()):
            if job.status is JobStatus.RESERVED:
                for role in releasable(job.request, job.released, job.phases):
                    job.released.add(role)
                    released.append(Release(job.request.job_id, job.epoch, role))
            if job.status is not JobStatus.RESERVED or len(job.released) == len(job.request.roles):
                del self.starting[job.request.job_id]
        return released

    def _count_out(self, job: JobState) -> None:
        self.leaving.pop(job.request.job_id, None)
        key = class_of(job.request)
        self.classes[key].pop(job.request.job_id)
        if not self.classes[key]:
            del self.classes[key]

    def forget_node(self, node: NodeState) -> list[JobState]:
        """Takes a lost node's cells out of every job that held some. Returns those jobs."""
        hit = [self.jobs[job_id] for job_id in self.on_node.pop(node.index, {})]
        for job in hit:
            gone = [grain for grain in job.grains if grain.node == node.index]
            job.grains = [grain for grain in job.grains if grain.node != node.index]
            lost = charge_of(self.cells, gone)
            self.quota.add_at(job.charged_at, lost, -1.0)
            job.charge = charge_of(self.cells, job.grains)
        return hit

    def recharge(self) -> None:
        """Counts what jobs hold anew after the tree of tenants changed."""
        for job in self.holding.values():
            self.quota.add_at(job.charged_at, job.charge, -1.0)
            job.charged_at = self.quota.add(job.request.tenant, job.charge)

    def count_capacity(self, spec: NodeSpec, sign: float) -> None:
        """Adds a node to the capacity that shares are measured against, or takes it away."""
        devices = float(spec.wiring.num_devices - len(spec.broken))
        amounts = {"devices": devices, "cpus": spec.cpus, "memory_bytes": float(spec.memory_bytes)}
        if spec.device_type is not None:
            amounts[f"devices/{spec.device_type}"] = devices
        self.quota.tree_changed()
        for resource, amount in amounts.items():
            self.quota.capacity[resource] = self.quota.capacity.get(resource, 0.0) + sign * amount

    def holders_of(self, grains: tuple[Grain, ...]) -> Iterator[str]:
        """The jobs that hold devices of these cells, or sit on their nodes when the cells are without devices."""
        seen: dict[str, None] = {}
        for grain in grains:
            for job_id, mask in self.on_node.get(grain.node, {}).items():
                if mask & grain.mask or not grain.mask:
                    seen[job_id] = None
        return iter(seen)

    def check_integrity(self) -> None:
        """Fails when a device has two holders, a gang holds a part of its cells, or the sums are wrong."""
        assert self.cells.free == sum(self.cells.pool_free.values()), "free devices are counted wrong"
        masks: dict[int, int] = {}
        cpus: dict[int, int] = {}
        usage: dict[str, dict[str, float]] = {}
        for job in self.jobs.values():
            holds = job.status in (JobStatus.RESERVED, JobStatus.RUNNING)
            assert holds == (job.placement is not None) or job.status is JobStatus.LEAVING, "status without cells"
            if holds:
                assert job.placement is not None
                assert job.grains == list(job.placement.grains), f"{job.request.job_id} holds a part of its gang"
            for grain in job.grains:
                assert masks.get(grain.node, 0) & grain.mask == 0, f"two jobs hold a device of node {grain.node}"
                masks[grain.node] = masks.get(grain.node, 0) | grain.mask
                cpus[grain.node] = cpus.get(grain.node, 0) + grain.cpu_milli
            for name in job.charged_at:
                total = usage.setdefault(name, {})
                for resource, amount in job.charge.items():
                    total[resource] = total.get(resource, 0.0) + amount
        for node in self.cells.nodes:
            if node.lost:
                assert node.index not in masks, "a job holds cells of a lost node"
                continue
            held = masks.get(node.index, 0)
            broken = mask_of(node.spec.broken)
            every = mask_of(range(node.model.wiring.num_devices))
            assert node.free == every & ~held & ~broken, f"free devices of {node.spec.name} are wrong"
            assert node.cpu_milli == milli(node.spec.cpus) - cpus.get(node.index, 0), "free CPUs are wrong"
        assert [(job.planned_end_s, job.number) for _, _, job in self.ends] == [key[:2] for key in self.ends]
        assert {job.request.job_id for _, _, job in self.ends} == set(self.holding), "planned ends are not listed"
        for name, amounts in self.quota.usage.items():
            for resource, amount in amounts.items():
                assert abs(amount - usage.get(name, {}).get(resource, 0.0)) < 1e-3, f"usage of {name} is wrong"


def class_of(request: GangRequest) -> JobClass:
    """What decides whether a job may be evicted by another one."""
    return (request.tenant, request.priority, request.spot, request.preemptible)

"""What an event does to the state: one function an event, no decision in any of them.

Owns the rules for late and repeated events: one about an earlier reservation (`epoch`) or an unknown job or node does
nothing. Called by `Scheduler.apply`, which decides at the next `step`.
"""

from __future__ import annotations

from millpond.jobs.scheduling.cells import Grain, is_same_machine, milli
from millpond.jobs.scheduling.cost import Part, step_s
from millpond.jobs.scheduling.dag import check_request, is_past
from millpond.jobs.scheduling.place import GangPlacement
from millpond.jobs.scheduling.queue import PendingQueue
from millpond.jobs.scheduling.quota import demand_of
from millpond.jobs.scheduling.rings import mask_of
from millpond.jobs.scheduling.state import ClusterState, JobState
from millpond.jobs.scheduling.types import (
    Cancelled,
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
    Restored,
    RoleRequest,
    Started,
    StartFailed,
    Submitted,
    TenantChanged,
    TenantRemoved,
)


class EventApplier:
    """Applies events to a state and its queue. Decisions that an event forces wait in `forced`."""

    def __init__(self, state: ClusterState, queue: PendingQueue) -> None:
        self.forced: list[Expire] = []
        self.fresh: list[str] = []  # jobs that came since the last pass
        self._state = state
        self._queue = queue
        self._count = 0
        self._shapes: dict[object, int] = {}

    def apply(self, event: Event, now_s: float) -> None:
        """Applies one event."""
        match event:
            case Submitted(request, epoch):
                self._submit(request, epoch)
            case Restored():
                self._restore(event, now_s)
            case NodeJoined(node):
                self._join(node)
            case NodeLost(name):
                self._lose(name)
            case NodeCordoned(name, cordoned):
                found = self._state.cells.find(name)
                if found is not None and not found.lost:
                    self._state.cells.cordon(found, cordoned)
            case TenantChanged(tenant):
                self._state.quota.change(tenant)
                self._state.recharge()
                self._state.cells.gain()
            case TenantRemoved(name):
                self._state.quota.remove(name)
                self._state.recharge()
                self._state.cells.gain()
            case _:
                self._apply_to_job(event, now_s)

    def _apply_to_job(self, event: Cancelled | Started | Finished | StartFailed | Evicted, now_s: float) -> None:
        job = self._state.jobs.get(event.job_id)
        if job is None or job.status is JobStatus.FINISHED:
            return
        if isinstance(event, Cancelled):
            self._cancel(job)
            return
        if event.epoch != job.epoch or job.status is JobStatus.PENDING:
            return
        match event:
            case Started(_, _, role, phase):
                self._start(job, role, phase, now_s)
            case Finished():
                self._state.drop(job, JobStatus.FINISHED)
            case StartFailed() | Evicted():
                if isinstance(event, StartFailed) or job.status is JobStatus.LEAVING:
                    self.requeue(job)

    def requeue(self, job: JobState) -> None:
        """Takes the cells from a job; it waits again, or is over when it was cancelled."""
        if job.is_cancelled:
            self._state.drop(job, JobStatus.FINISHED)
            return
        self._state.drop(job, JobStatus.PENDING)
        self._queue.add(job)
        self.fresh.append(job.request.job_id)

    def void(self, job: JobState, reason: str) -> None:
        """A reservation ends before its time: at once when nothing was released, else after `Evicted`."""
        must_stop = bool(job.released)
        self.forced.append(Expire(job.request.job_id, job.epoch, reason, must_stop))
        if must_stop:
            self._state.mark_leaving(job)
        else:
            self.requeue(job)

    def _submit(self, request: GangRequest, epoch: int) -> None:
        known = self._state.jobs.get(request.job_id)
        if known is not None and (known.status is not JobStatus.PENDING or known.request == request):
            return
        check_request(request)
        if known is not None:  # it asks for something else than before: an elastic job of another size
            self._queue.remove(known)
            self._state.cells.version += 1  # its plan may have kept cells from others
            epoch = max(epoch, known.epoch)
        job = self._make(request)
        job.epoch = epoch
        self._state.pending[request.job_id] = job
        self._queue.add(job)
        self.fresh.append(request.job_id)

    def _make(self, request: GangRequest) -> JobState:
        self._count += 1
        job = JobState(request, self._count)
        smallest = tuple(
            role if role.min_replicas is None else _with_replicas(role, role.min_replicas) for role in request.roles
        )
        job.demand = demand_of(smallest)
        job.widest = max((role.resources.devices for role in request.roles), default=0)
        key = (request.roles, request.selector, request.aggregation)
        job.shape = self._shapes.setdefault(key, len(self._shapes))
        self._state.jobs[request.job_id] = job
        return job

    def _cancel(self, job: JobState) -> None:
        if job.status is JobStatus.PENDING:
            self._queue.remove(job)
            self._state.drop(job, JobStatus.FINISHED)
            self._state.cells.version += 1  # its plan may have kept cells from others
            return
        if not job.is_cancelled:
            job.is_cancelled = True
            if job.status is not JobStatus.LEAVING:
                self.void(job, "cancelled")

    def _start(self, job: JobState, role: str, phase: Phase, now_s: float) -> None:
        if role not in job.released:
            return
        if not is_past(job.phases.get(role), phase):
            job.phases[role] = phase
        roles = [item.name for item in job.request.roles if item.replicas]
        if job.status is JobStatus.RESERVED and all(is_past(job.phases.get(name), Phase.RUNNING) for name in roles):
            job.status = JobStatus.RUNNING
            job.started_s = now_s
            self._state.file_end(job)
            job.expires_s = float("inf")

    def _join(self, spec: NodeSpec) -> None:
        """A new node, new labels of one that is there, or another machine under an old name."""
        found = self._state.cells.find(spec.name)
        if found is not None and not found.lost:
            if not is_same_machine(found.spec, spec):
                self._lose(spec.name)
            else:
                self._state.count_capacity(found.spec, -1.0)
        self._state.cells.join(spec)
        self._state.count_capacity(spec, 1.0)

    def _lose(self, name: str) -> None:
        node = self._state.cells.find(name)
        if node is None or node.lost:
            return
        self._state.count_capacity(node.spec, -1.0)
        self._state.cells.lose(node)
        for job in self._state.forget_node(node):
            if job.status is not JobStatus.LEAVING:
                self.void(job, "node_lost")
        self._state.cells.version += 1

    def _restore(self, event: Restored, now_s: float) -> None:
        """Brings back a reservation. What names a node that is gone starts as void."""
        request = event.request
        if request.job_id in self._state.jobs:
            return
        job = self._make(request)
        grains, parts = self._take_back(event)
        ring = tuple(Part(self._state.cells.nodes[node].model, mask) for node, mask in parts.items())
        cost = step_s(ring, request.step) if ring and request.step else 0.0
        placement = GangPlacement(dict(event.placements), tuple(grains), ring, cost)
        job.epoch = event.epoch - 1
        self._state.hold(job, placement, now_s)
        job.expires_s = event.expires_s
        job.released.update(event.released)
        job.phases.update((role, Phase.RUNNING) for role in event.started)
        if event.started_s is not None:
            job.status, job.started_s, job.expires_s = JobStatus.RUNNING, event.started_s, float("inf")
            self._state.file_end(job)
        missing = sum(len(group) for group in event.placements.values()) > len(grains)
        if event.leaving:
            self._state.mark_leaving(job)
        elif missing:
            self.void(job, "node_lost")

    def _take_back(self, event: Restored) -> tuple[list[Grain], dict[int, int]]:
        grains: list[Grain] = []
        parts: dict[int, int] = {}
        needs = {role.name: role.resources for role in event.request.roles}
        for name, group in event.placements.items():
            for placement in group:
                node = self._state.cells.find(placement.node)
                if node is None or node.lost:
                    continue
                need, mask = needs[name], mask_of(placement.device_ids)
                cpus, memory = milli(need.cpus) * placement.num_ranks, need.memory_bytes * placement.num_ranks
                if mask & ~node.free:
                    continue  # the node was lost since, and others hold these devices now
                grains.append(Grain(node.index, mask, cpus, memory))
                self._state.cells.take(grains[-1])
                if mask:
                    parts[node.index] = parts.get(node.index, 0) | mask
        return grains, parts


def _with_replicas(role: RoleRequest, replicas: int) -> RoleRequest:
    return RoleRequest(role.name, replicas, role.resources, role.min_replicas, role.after)

"""When a waiting job could start, and the cells kept for it until then.

Owns the look ahead: running jobs are taken away in the order in which they should end until the job fits. The cells
it would get are held back from everybody who would still be there at that time, which is what makes backfill harmless.
Knows nothing of whose turn it is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from heapq import heapify, heappop, heappush

from millpond.jobs.scheduling.cells import Cells, Grain, merge_grains
from millpond.jobs.scheduling.place import GangPlacement, place_gang
from millpond.jobs.scheduling.quota import charge_of
from millpond.jobs.scheduling.state import ClusterState, FuturePlan, JobState
from millpond.jobs.scheduling.types import GangRequest, JobStatus

_NOTHING = Grain(-1, 0, 0, 0)  # held of a cell that is not free


def plan_start(
    state: ClusterState,
    job: JobState,
    now_s: float,
    holds: Holds | None = None,
    *,
    request: GangRequest | None = None,
    kind: str = "wait",
) -> FuturePlan | None:
    """Returns the earliest start that the estimates allow; None when the job never fits this cluster and quota.

    Args:
        state: The cluster.
        job: Who wants to start.
        now_s: The time.
        holds: Cells kept for others.
        request: Asked for instead of the job's own request: the shape it would rather have.
        kind: The kind of the plan.
    """
    enders = _Enders(state, now_s)
    kept = holds.masks() if holds is not None else {}
    if request is not None and is_for_one_machine(request):
        least = surely = _least_gone_there(state, enders, int(job.demand["devices"]), kept)
    else:
        least, surely = _least_gone(state, enders, job, kept)

    def without(count: int) -> GangPlacement | None:
        return place_without(state, job, enders.first(count), holds, request=request) if count >= surely else None

    low, high, stride = least - 1, max(least, 1), 1
    placement = None
    while True:
        high = min(high, len(enders))
        placement = without(high)
        if placement is not None or high == len(enders):
            break
        low, high, stride = high, high + stride, 2 * stride
    if placement is None:
        return None
    while high - max(low, 0) > 1:
        middle = (max(low, 0) + high) // 2
        earlier = without(middle)
        if earlier is not None:
            high, placement = middle, earlier
        else:
            low = middle
    ended = enders.first(high)
    start_s = ended[-1].ends_s(now_s) if ended else now_s
    gone = {other.request.job_id for other in ended}
    blocking = tuple(job_id for job_id in state.holders_of(placement.grains) if job_id in gone)
    charge = charge_of(state.cells, placement.grains)
    step = job.request.step
    end_s = start_s + placement.step_s * step.num_steps if step is not None else float("inf")
    return FuturePlan(start_s, merge_grains(placement.grains), charge, kind, blocking, end_s)


def is_for_one_machine(request: GangRequest) -> bool:
    """Whether the request stands on one machine or nowhere."""
    return request.aggregation is not None and request.aggregation.max_parts == 1 and len(request.roles) == 1


def _roomy(state: ClusterState, gone: Sequence[JobState], devices: int) -> set[int]:
    """Nodes that hold so many devices of one job once some others are gone."""
    room: dict[int, int] = {}
    for other in gone:
        for grain in other.grains:
            free = room.get(grain.node)
            room[grain.node] = grain.mask.bit_count() + (
                state.cells.nodes[grain.node].free.bit_count() if free is None else free
            )
    return {node for node, free in room.items() if free >= devices}


class _Enders:
    """Jobs that hold cells, the first to end first. Sorted as far as it is asked for: a plan needs few of many."""

    def __init__(self, state: ClusterState, now_s: float) -> None:
        self._now_s = now_s
        self._ends, self._at = state.ends, 0
        self._near = [(now_s, other.number, other) for other in state.leaving.values()]
        heapify(self._near)
        self._sorted: list[JobState] = []

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[JobState]:
        for at in range(len(self)):
            self._sort(at + 1)
            yield self._sorted[at]

    def first(self, count: int) -> list[JobState]:
        """The first so many."""
        self._sort(count)
        return self._sorted[:count]

    def _sort(self, count: int) -> None:
        while len(self._sorted) < count:
            # Nobody ends before its planned end, so who is planned later than the nearest need not be looked at yet.
            while self._at < len(self._ends) and (not self._near or self._ends[self._at][0] <= self._near[0][0]):
                _, number, other = self._ends[self._at]
                self._at += 1
                if other.status is not JobStatus.LEAVING:
                    heappush(self._near, (other.ends_s(self._now_s), number, other))
            self._sorted.append(heappop(self._near)[2])


def _least_gone(state: ClusterState, enders: _Enders, job: JobState, kept: Mapping[int, int]) -> tuple[int, int]:
    """How many must be gone at least: by the number of devices, and by those of the right type that nobody else plans.

    The search begins at the first and tries nothing before the second.
    """
    need = int(job.demand.get("devices", 0.0))
    types = [name.partition("/")[2] for name, amount in job.demand.items() if "/" in name and amount >= need > 0]
    fitting = {pool for pool in state.cells.pool_free if not types or pool[0] in types}
    every, total = state.cells.free, sum(state.cells.pool_free[pool] for pool in fitting)
    nodes, least = state.cells.nodes, None
    for count, other in enumerate(enders):
        if least is None and every >= need:
            least = count
        if total >= need:
            return least or 0, count
        for grain in other.grains:
            every += grain.mask.bit_count()
            if nodes[grain.node].pool in fitting:
                total += (grain.mask & ~kept.get(grain.node, 0)).bit_count()
    return len(enders) if least is None else least, len(enders)


def _least_gone_there(state: ClusterState, enders: _Enders, need: int, kept: Mapping[int, int]) -> int:
    """The same for a job on one machine."""
    if state.cells.has_room(need, need):
        return 0
    room: dict[int, int] = {}
    for count, other in enumerate(enders, start=1):
        for grain in other.grains:
            free, out = room.get(grain.node), ~kept.get(grain.node, 0)
            if free is None:
                free = (state.cells.nodes[grain.node].free & out).bit_count()
            room[grain.node] = free + (grain.mask & out).bit_count()
            if room[grain.node] >= need:
                return count
    return len(enders)


def place_without(
    state: ClusterState,
    job: JobState,
    gone: Sequence[JobState],
    holds: Holds | None = None,
    *,
    request: GangRequest | None = None,
) -> GangPlacement | None:
    """Places a job as if some others had ended, and undoes it. Cells planned for others stay theirs."""
    # Numbers first: most searches end here, before a cell is moved.
    devices = state.cells.free
    for other in gone:
        devices += sum(grain.mask.bit_count() for grain in other.grains)
    if devices < job.demand.get("devices", 0.0):
        return None
    has_quota = bool(state.quota.tenants)
    for other in gone if has_quota else ():
        state.quota.add_at(other.charged_at, other.charge, -1.0)
    placement = None
    if state.quota.shortage(job.request.tenant, job.demand) is None:
        mark = state.cells.mark()
        placement = _place_beside(state, job, gone, holds, request or job.request)
        state.cells.rollback(mark)
    for other in gone if has_quota else ():
        state.quota.add_at(other.charged_at, other.charge)
    return placement


def _place_beside(
    state: ClusterState, job: JobState, gone: Sequence[JobState], holds: Holds | None, asked: GangRequest
) -> GangPlacement | None:
    # What comes free where the job cannot stand in the end need not be moved to and fro.
    within = _roomy(state, gone, int(job.demand["devices"])) if is_for_one_machine(asked) else None
    freed = (grain for other in gone for grain in other.grains if within is None or grain.node in within)
    for grain in merge_grains(freed):
        state.cells.give(grain)
    if holds is not None:
        holds.tighten()
    placement = place_gang(state.cells, asked, state.quota.may_take(job.request.tenant), is_named=False)
    if placement is None or not state.quota.tenants or _has_elastic_role(job):
        return placement
    # Charged for the type it would get: a plan that its quota never allows would block its tenant.
    charge = charge_of(state.cells, placement.grains)
    return placement if state.quota.shortage(job.request.tenant, charge) is None else None


class Holds:
    """The free part of planned cells, taken out of the pool during one pass over the queue."""

    def __init__(self, state: ClusterState) -> None:
        self._state = state
        self.num_devices = 0  # taken out of the pool for all of them together
        self._held: dict[str, tuple[FuturePlan, list[Grain], tuple[str, ...]]] = {}

    def __len__(self) -> int:
        return len(self._held)

    def add(self, job: JobState) -> None:
        """Holds what is free of a job's plan, and the quota it will need."""
        assert job.plan is not None, "only planned cells are held"
        assert job.request.job_id not in self._held, "a plan is held once"
        cells, quota = self._state.cells, self._state.quota
        taken = [_free_part(cells, grain) for grain in job.plan.grains]
        for part in taken:
            if part is not _NOTHING:
                cells.take(part)
                self.num_devices += part.mask.bit_count()
        names = quota.add(job.request.tenant, job.plan.charge) if quota.tenants else ()
        self._held[job.request.job_id] = (job.plan, taken, names)

    def tighten(self) -> None:
        """Takes what a search has just imagined free, as far as it is planned. The search's rollback undoes it."""
        for plan, taken, _ in self._held.values():
            for grain, part in zip(plan.grains, taken, strict=True):
                rest = Grain(
                    grain.node,
                    grain.mask & ~part.mask,
                    grain.cpu_milli - part.cpu_milli,
                    grain.memory_bytes - part.memory_bytes,
                )
                more = _free_part(self._state.cells, rest)
                if more is not _NOTHING:
                    self._state.cells.take(more)

    def lift(self, job_id: str) -> None:
        """Gives back what was held for a job."""
        plan, taken, names = self._held.pop(job_id)
        for part in reversed(taken):
            if part is not _NOTHING:
                self._state.cells.give(part)
                self.num_devices -= part.mask.bit_count()
        self._state.quota.add_at(names, plan.charge, -1.0)

    def renew(self, job_id: str) -> None:
        """What is held for a job stays so, as if it was lifted and held anew: where plans overlap, order counts."""
        self._held[job_id] = self._held.pop(job_id)

    def lift_all(self) -> None:
        """Gives everything back: the end of a pass."""
        for job_id in reversed(list(self._held)):
            self.lift(job_id)

    def devices_of(self, job_ids: Sequence[str]) -> int:
        """How many devices are held for these jobs now."""
        return sum(part.mask.bit_count() for job_id in job_ids for part in self._held[job_id][1])

    def masks(self) -> dict[int, int]:
        """All planned devices, by node."""
        masks: dict[int, int] = {}
        for plan, _, _ in self._held.values():
            for grain in plan.grains:
                masks[grain.node] = masks.get(grain.node, 0) | grain.mask
        return masks

    def later_than(self, ends_s: float) -> list[str]:
        """Jobs whose plans begin only after this time."""
        return [job_id for job_id, (plan, _, _) in self._held.items() if plan.start_s >= ends_s]


def _has_elastic_role(job: JobState) -> bool:
    return any(role.min_replicas is not None for role in job.request.roles)


def _free_part(cells: Cells, grain: Grain) -> Grain:
    node = cells.nodes[grain.node]
    if node.lost:
        return _NOTHING
    _, mask, cpu_milli, memory_bytes = grain
    mask &= node.free
    if cpu_milli > node.cpu_milli:
        cpu_milli = max(node.cpu_milli, 0)
    if memory_bytes > node.memory_bytes:
        memory_bytes = max(node.memory_bytes, 0)
    if mask or cpu_milli or memory_bytes:
        return Grain(grain.node, mask, cpu_milli, memory_bytes)
    return _NOTHING

"""Whether jobs that start together would stand better in other places: the pass serves in turn, this looks at all.

Owns the worth of a set of placements and the search over it. A job that comes first takes what is best for it alone;
the next ones live with the rest, and the sum may be far from the best one. Only jobs of one pass and one priority trade
places: so that one more of them is served, whatever that costs the sum, or for a better sum. Called by `Scheduler` when
a job finds no room and at the end of a pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import combinations, islice, permutations
from operator import itemgetter

from millpond.jobs.scheduling.cells import Cells, Grain, NodeState
from millpond.jobs.scheduling.cost import Part, bus_gbps, step_s
from millpond.jobs.scheduling.place import GangPlacement, lowest
from millpond.jobs.scheduling.quota import charge_of
from millpond.jobs.scheduling.rings import devices_of, mask_of
from millpond.jobs.scheduling.state import ClusterState, JobState
from millpond.jobs.scheduling.types import Decision, GangRequest, Reserve, StepModel

# What a job that says nothing of its steps is taken for: BERT-base, half of its exchange hidden.
NOMINAL_STEP = StepModel(compute_s=0.1, gradient_bytes=440_000_000)

# Bounds: more jobs, or a cluster with more kinds of free nodes, are left as they were served.
_JOBS = 4
_GROUPS = 64
# The search over devices: so many free ones on so many nodes at most, so many choices looked at, and a gain that is
# worth a look.
_DEVICES = 16
_NODES = 6
_CHOICES = 20_000
_CHOICES_FOR_ONE_MORE = 6_000  # asked often, and any place will do
_GAIN = 1.005
# What a job without a place is worth: all of them served comes before any sum, and nowhere to stand ends a search.
_NOWHERE = float("-inf")

Place = Callable[[JobState], GangPlacement | None]
Masks = tuple[int, ...]
Pick = Callable[[int, int, int], Sequence[int]]  # place of the node, its free devices, how many


def worth(request: GangRequest, parts: Sequence[Part]) -> float:
    """Devices of a placement times the share of a step that is computing."""
    devices = sum(part.mask.bit_count() for part in parts)
    if devices <= 1:
        return float(devices)
    step = request.step if request.step is not None and request.step.compute_s > 0 else NOMINAL_STEP
    return devices * step.compute_s / step_s(parts, step)


def trade_places(state: ClusterState, jobs: Sequence[JobState], place: Place) -> bool:
    """Moves jobs that were just reserved, and not released yet, to where all of them together are worth most.

    Args:
        state: The cluster, in which the jobs hold their cells.
        jobs: The jobs, in turn.
        place: Takes cells for one job, or returns None.

    Returns:
        Whether any of them moved.
    """
    found = _rearranged(state, jobs, place, _CHOICES)
    if found is None:
        return False
    _move(state, jobs, found)
    return True


def name_places(state: ClusterState, decisions: list[Decision]) -> None:
    """Writes into the decisions of a pass where its jobs have come to stand."""
    for at, made in enumerate(decisions):
        placement = state.jobs[made.job_id].placement if isinstance(made, Reserve) else None
        if isinstance(made, Reserve) and placement is not None:
            decisions[at] = replace(made, placements=placement.roles, bus_gbps=round(placement.gbps, 3))


def place_by_moving(
    state: ClusterState, jobs: Sequence[JobState], late: JobState, place: Place
) -> GangPlacement | None:
    """Moves jobs that were just reserved so that one more fits, and takes its cells; None: nothing was changed."""
    if late.demand["devices"] > state.cells.free:
        return None
    found = _rearranged(state, [*jobs, late], place, _CHOICES_FOR_ONE_MORE)
    if found is None:
        return None
    _move(state, jobs, found[:-1])
    for grain in found[-1].grains:
        state.cells.take(grain)
    return found[-1]


def _move(state: ClusterState, jobs: Sequence[JobState], found: Sequence[GangPlacement]) -> None:
    for job in jobs:
        for grain in job.grains:
            state.cells.give(grain)
    for job, placement in zip(jobs, found, strict=True):
        for grain in placement.grains:
            state.cells.take(grain)
        state.move(job, placement)


def _rearranged(
    state: ClusterState, jobs: Sequence[JobState], place: Place, budget: int
) -> list[GangPlacement] | None:
    """Better placements for the jobs, in their order; None when there are none. Changes nothing."""
    if not _may_trade(state, jobs):
        return None
    mark = state.cells.mark()
    for job in jobs:
        for grain in job.grains:
            state.cells.give(grain)
        state.quota.add_at(job.charged_at, job.charge, -1.0)
    found = _Arrangements(state, jobs, place, budget).find()
    state.cells.rollback(mark)
    for job in jobs:
        state.quota.add_at(job.charged_at, job.charge)
    return found


def _may_trade(state: ClusterState, jobs: Sequence[JobState]) -> bool:
    if not 2 <= len(jobs) <= _JOBS or not state.cells.is_wired:
        return False
    first = jobs[0].request
    if any((job.request.priority, job.request.spot) != (first.priority, first.spot) for job in jobs):
        return False
    if any(role.min_replicas is not None for job in jobs for role in job.request.roles):
        return False  # in another order an elastic job might have to shrink
    return sum(map(len, state.cells.groups.values())) <= _GROUPS


class _Arrangements:
    """The search; the cells of all jobs are free when it begins and when it ends."""

    def __init__(self, state: ClusterState, jobs: Sequence[JobState], place: Place, budget: int) -> None:
        self._state = state
        self._jobs = jobs
        self._place = place
        self._budget = budget
        self._best: list[GangPlacement] | None = None
        held = [job.placement for job in jobs]
        self._now = [worth(job.request, p.parts) if p else _NOWHERE for job, p in zip(jobs, held, strict=True)]
        self._worth = sum(self._now)

    def find(self) -> list[GangPlacement] | None:
        devices = _DeviceSearch.of(self._state.cells, self._jobs, self._budget)
        bound = devices.bound if devices is not None else sum(self._alone(job) for job in self._jobs)
        if bound <= self._worth * _GAIN:
            return None
        places = range(len(self._jobs))
        for order in permutations(places):
            if self._worth * _GAIN >= bound:
                break
            found = self._all_of([self._jobs[at] for at in order])
            if found is not None:
                self._offer([found[order.index(at)] for at in places])
        masks = devices.best(self._jobs, self._worth) if devices is not None and self._worth * _GAIN < bound else None
        if masks is not None:
            found = self._all_of(self._jobs, masks)
            if found is not None:
                self._offer(found)
        return self._best

    def _alone(self, job: JobState) -> float:
        found = self._all_of([job])
        return self._values([job], found)[0] if found is not None else _NOWHERE

    def _offer(self, found: list[GangPlacement]) -> None:
        values = self._values(self._jobs, found)
        slower = any(
            job.request.aggregation is not None and value < before - 1e-9
            for job, value, before in zip(self._jobs, values, self._now, strict=True)
        )
        if sum(values) > self._worth * _GAIN and not slower:  # an aggregated job chose between this shape and waiting
            self._best, self._worth = found, sum(values)

    def _values(self, jobs: Sequence[JobState], found: Sequence[GangPlacement]) -> list[float]:
        return [worth(job.request, placement.parts) for job, placement in zip(jobs, found, strict=True)]

    def _all_of(self, jobs: Sequence[JobState], masks: Sequence[dict[int, int]] = ()) -> list[GangPlacement] | None:
        """Places jobs one after the other, each on its devices if they are named, and takes all of it back."""
        mark = self._state.cells.mark()
        found: list[GangPlacement] = []
        charged = []
        for at, job in enumerate(jobs):
            placement = self._place_on(job, masks[at]) if masks else self._place(job)
            if placement is None:
                break
            found.append(placement)
            charge = charge_of(self._state.cells, placement.grains)
            charged.append((self._state.quota.add(job.request.tenant, charge), charge))
        self._state.cells.rollback(mark)
        for names, charge in charged:
            self._state.quota.add_at(names, charge, -1.0)
        return found if len(found) == len(jobs) else None

    def _place_on(self, job: JobState, masks: dict[int, int]) -> GangPlacement | None:
        """Places a job with every other free device out of its reach."""
        cells = self._state.cells
        others = [Grain(node.index, node.free & ~masks.get(node.index, 0), 0, 0) for node in _free_nodes(cells)]
        for grain in others:
            cells.take(grain)
        placement = self._place(job)
        for grain in others:
            cells.give(grain)
        return placement


def _free_nodes(cells: Cells) -> list[NodeState]:
    found = [
        cells.nodes[index]
        for groups in cells.groups.values()
        for free, members in groups.items()
        if free
        for index in members
    ]
    return sorted(found, key=lambda node: node.index)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """What a job needs for its ring: replicas of `width` devices each."""

    job: JobState
    replicas: int
    width: int
    device_type: str | None


class _DeviceSearch:
    """Every choice of devices for every job, by bounds, until the budget is spent."""

    def __init__(self, nodes: Sequence[NodeState], wanted: Sequence[_Wanted], budget: int) -> None:
        self._nodes = nodes
        self._models = [node.model for node in nodes]
        self._wanted = wanted
        self._free = tuple(node.free for node in nodes)
        self._left = budget
        self._known = 0.0
        self._found: list[Masks] = []
        self._values: list[dict[Masks, float]] = [{} for _ in wanted]
        self._worths: dict[tuple[int, int, float, str], float] = {}
        self._most = [0.0] * (len(wanted) + 1)
        for at in range(len(wanted) - 1, -1, -1):
            best = max((self._value(at, masks) for masks in self._fastest(at)), default=_NOWHERE)
            self._most[at] = self._most[at + 1] + best

    @classmethod
    def of(cls, cells: Cells, jobs: Sequence[JobState], budget: int) -> _DeviceSearch | None:
        """A search among what is free; None when there is too much of it, or a job has several rings."""
        if cells.free > _DEVICES:
            return None
        nodes = _free_nodes(cells)
        wanted = [_wanted(job) for job in jobs]
        asked = [want for want in wanted if want is not None]
        if len(nodes) > _NODES or len(asked) < len(jobs):
            return None
        return cls(nodes, sorted(asked, key=lambda want: -want.replicas * want.width), budget)

    @property
    def bound(self) -> float:
        """What the jobs would be worth if each were alone."""
        return self._most[0]

    def best(self, jobs: Sequence[JobState], known: float) -> list[dict[int, int]] | None:
        """The best choice as devices by node for each job; None when it does not beat the known worth."""
        self._known = known
        self._run(0, self._free, 0.0, [])
        if not self._found:
            return None
        by_job = {
            want.job.request.job_id: {node.index: mask for node, mask in zip(self._nodes, masks, strict=True) if mask}
            for want, masks in zip(self._wanted, self._found, strict=True)
        }
        return [by_job[job.request.job_id] for job in jobs]

    def _run(self, at: int, free: Masks, sofar: float, chosen: list[Masks]) -> None:
        if at == len(self._wanted) - 1:
            value, masks = self._best_of(at, free)
            if sofar + value > self._known * _GAIN:
                self._known, self._found = sofar + value, [*chosen, masks]
            return
        for value, masks, rest in self._ranked(at, free):
            # The best come first: where one is too little, so are all after it.
            if self._left < 0 or sofar + value + self._most[at + 1] <= self._known * _GAIN:
                return
            self._run(at + 1, rest, sofar + value, [*chosen, masks])

    def _best_of(self, at: int, free: Masks) -> tuple[float, Masks]:
        """The choice of the most worth for the last job."""
        want = self._wanted[at]
        if want.width == 1 and want.device_type is None and sum(map(int.bit_count, free)) == want.replicas:
            self._left -= 1
            return self._value(at, free), free  # all that is left
        best: tuple[float, Masks] = (_NOWHERE, ())
        for masks in self._choices(at, free, self._all_subsets):
            self._left -= 1
            value = self._value(at, masks)
            if value > best[0]:
                best = (value, masks)
            if self._left < 0 or value >= self._most[at]:
                break
        return best

    def _ranked(self, at: int, free: Masks) -> list[tuple[float, Masks, Masks]]:
        """Choices for one job and what they leave: the most worth first, then those that leave the best rings."""
        found = []
        for masks in islice(self._choices(at, free, self._all_subsets), max(self._left, 0)):
            rest = tuple(have & ~mask for have, mask in zip(free, masks, strict=True))
            left = sum([model.quality(mask) for model, mask in zip(self._models, rest, strict=True)])
            found.append((self._value(at, masks), left, masks, rest))
        self._left -= len(found)
        found.sort(key=itemgetter(0, 1), reverse=True)
        return [(value, masks, rest) for value, _, masks, rest in found]

    def _value(self, at: int, masks: Masks) -> float:
        value = self._values[at].get(masks)
        if value is None:
            parts = [Part(model, mask) for model, mask in zip(self._models, masks, strict=True) if mask]
            # For one job the worth depends on the machines and the slowest of them alone; choices come in thousands.
            key = (at, len(parts), bus_gbps(parts), parts[0].model.wiring.kind)
            value = self._worths.get(key)
            if value is None:
                value = self._worths[key] = worth(self._wanted[at].job.request, parts)
            self._values[at][masks] = value
        return value

    def _fastest(self, at: int) -> Iterator[Masks]:
        """The fastest way to take each split: the best ring on one node, else the best ways out."""
        want = self._wanted[at]
        whole = want.replicas * want.width

        def pick(index: int, free: int, size: int) -> tuple[int, ...]:
            model = self._nodes[index].model
            return (model.best_subset(free, size) if size == whole else model.best_part(free, size),)

        return self._choices(at, self._free, pick)

    def _all_subsets(self, index: int, free: int, size: int) -> Sequence[int]:
        return (lowest(free, size),) if self._models[index].is_even else _subsets(free, size)

    def _choices(self, at: int, free: Masks, pick: Pick) -> Iterator[Masks]:
        want = self._wanted[at]
        known: dict[tuple[int, int], list[Masks]] = {}

        def fill(index: int, left: int) -> Iterator[Masks]:
            if index == len(free):
                if not left:
                    yield ()
                return
            fits = want.device_type in (None, self._nodes[index].pool[0])
            most = min(left, free[index].bit_count() // want.width) if fits else 0
            for count in range(most, -1, -1):
                rests = rest_of(index + 1, left - count)
                if rests:
                    for mask in pick(index, free[index], count * want.width) if count else (0,):
                        head = (mask,)
                        for rest in rests:
                            yield head + rest

        def rest_of(index: int, left: int) -> list[Masks]:
            found = known.get((index, left))
            if found is None:
                found = known[index, left] = list(fill(index, left))
            return found

        return fill(0, want.replicas)


@lru_cache(maxsize=4096)
def _subsets(free: int, size: int) -> tuple[int, ...]:
    return tuple(mask_of(devices) for devices in combinations(devices_of(free), size))


def _wanted(job: JobState) -> _Wanted | None:
    """What a job asks of devices; None when its roles form several rings."""
    rings = {
        (role.resources.devices, role.resources.device_type)
        for role in job.request.roles
        if role.resources.devices and role.replicas
    }
    if len(rings) != 1:
        return None
    ((width, device_type),) = rings
    return _Wanted(job, sum(role.replicas for role in job.request.roles if role.resources.devices), width, device_type)

"""Who has to leave so that a job can start: the fewest victims that really make room.

Owns the choice of victims. Nobody is named before the job was placed, exactly and whole, on the cells that would come
free; the cells then wait for it as a plan. May evict: lower priority in the same tenant, spot jobs, what sits on the
job's guarantee, and lower priority of tenants that borrow. Among sets of victims the order is: lowest highest
priority, fewest, least work lost, least left over.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from heapq import merge
from itertools import combinations, groupby

from millpond.jobs.scheduling.backfill import Holds, place_without
from millpond.jobs.scheduling.cells import merge_grains
from millpond.jobs.scheduling.place import GangPlacement
from millpond.jobs.scheduling.quota import charge_of
from millpond.jobs.scheduling.rings import mask_of
from millpond.jobs.scheduling.state import ClusterState, FuturePlan, JobState
from millpond.jobs.scheduling.types import JobStatus

# Limits that keep one search short; past them the greedy answer stands.
_NODE_LIMIT = 64
_JOINT_VICTIMS = 3
_PRUNE_LIMIT = 64
_CANDIDATES = 192


@dataclass(frozen=True, slots=True)
class Eviction:
    """Victims and the plan for what they free. No victims: those who leave already make room."""

    victims: tuple[JobState, ...]
    plan: FuturePlan
    is_reclaim: bool


def find_eviction(
    state: ClusterState, job: JobState, now_s: float, holds: Holds | None = None, spared: Collection[str] = ()
) -> Eviction | None:
    """Looks for victims; None when no set of them makes room beside the plans in `holds`.

    Args:
        state: The cluster.
        job: Who needs room.
        now_s: The time, which says how much work a victim would lose.
        holds: Cells kept for others.
        spared: Jobs that are no victims whatever else holds of them.
    """
    search = _Eviction(state, job, now_s, holds)
    search.spared = spared
    return search.find()


class _Eviction:
    def __init__(self, state: ClusterState, job: JobState, now_s: float, holds: Holds | None) -> None:
        self._state = state
        self._holds = holds
        self.spared: Collection[str] = ()
        self._verdicts: dict[str, tuple[bool, bool]] = {}
        self._job = job
        self._now_s = now_s
        quota = state.quota
        self._entitled = quota.entitled(job.request.tenant, job.demand) if quota.tenants else []
        self._leaving = list(state.leaving.values())
        self._losses: dict[str, float] = {}
        self._tried: dict[tuple[str, ...], GangPlacement | None] = {}

    def find(self) -> Eviction | None:
        if self._leaving:
            placement = self._try(())
            if placement is not None:
                return self._answer((), placement)
        candidates = self._candidates()
        if not candidates or self._is_too_little(candidates):
            return None
        best: tuple[JobState, ...] | None = None
        for chosen in self._single_node(candidates):
            if self._try(chosen) is not None:
                best = chosen
                break
        greedy = self._greedy(candidates) if best is None or len(best) > 1 else None
        if greedy is not None and (best is None or self._rank(greedy) < self._rank(best)):
            best = greedy
        if best is None:
            return None
        placement = self._try(best)
        assert placement is not None, "victims that made room do so again"
        return self._answer(best, placement)

    def _candidates(self) -> list[JobState]:
        """The cheapest jobs that may be evicted: spot first, then the lowest priority, then the latest started."""
        classes = self._state.classes
        ranked = sorted((not key[2], key[1], key) for key in classes if self._may_evict(*key))
        found: list[JobState] = []
        for _, tier in groupby(ranked, key=lambda entry: entry[:2]):
            latest = [reversed(classes[key].values()) for _, _, key in tier]
            for other in merge(*latest, key=self._price):
                if other.status is not JobStatus.LEAVING and other.request.job_id not in self.spared:
                    found.append(other)
                if len(found) >= _CANDIDATES:
                    return found
        return sorted(found, key=self._price)

    def _answer(self, victims: tuple[JobState, ...], placement: GangPlacement) -> Eviction:
        holders = tuple(other.request.job_id for other in (*self._leaving, *victims))
        charge = charge_of(self._state.cells, placement.grains)
        plan = FuturePlan(self._now_s, merge_grains(placement.grains), charge, "eviction", holders)
        own = self._job.request
        reclaim = any(v.request.tenant != own.tenant and v.request.priority >= own.priority for v in victims)
        return Eviction(victims, plan, reclaim)

    def _may_evict(self, tenant: str, priority: int, spot: bool, preemptible: bool) -> bool:
        mine = self._job.request
        if mine.spot or not (preemptible or spot):
            return False
        if spot:
            return True
        lower = priority < mine.priority
        verdict = self._verdicts.get(tenant)
        if verdict is None:
            verdict = self._verdicts[tenant] = self._judge(tenant)
        return verdict[0] or (lower and verdict[1])

    def _judge(self, tenant: str) -> tuple[bool, bool]:
        """Whether jobs of a tenant may be evicted at all, and whether those of lower priority may."""
        quota, mine = self._state.quota, self._job.request.tenant
        if tenant == mine or not quota.tenants:
            return (False, True)
        if self._entitled and quota.lender(mine, self._entitled, tenant):
            return (True, True)
        path = quota.path(tenant)
        return (False, not path or quota.is_borrowing(path[0]))

    def _is_too_little(self, candidates: Iterable[JobState]) -> bool:
        """Whether the job would not fit even if all of them were gone, by the number of devices."""
        room = self._state.cells.free
        for other in (*self._leaving, *candidates):
            room += sum(grain.mask.bit_count() for grain in other.grains)
        return room < self._job.demand.get("devices", 0.0)

    def _loss(self, other: JobState) -> float:
        loss = self._losses.get(other.request.job_id)
        if loss is None:
            loss = self._losses[other.request.job_id] = other.lost_work(self._now_s)
        return loss

    def _price(self, other: JobState) -> tuple[bool, int, float, int]:
        devices = max(other.charge.get("devices", 0.0), 1.0)
        return (not other.request.spot, other.request.priority, self._loss(other) / devices, -other.number)

    def _rank(self, victims: Iterable[JobState]) -> tuple[int, int, float, float]:
        priority, count, loss, freed = -(1 << 31), 0, 0.0, 0.0
        for other in victims:
            if other.request.priority > priority and not other.request.spot:
                priority = other.request.priority
            count += 1
            loss += self._loss(other)
            freed += other.charge.get("devices", 0.0)
        return (priority, count, loss, freed)

    def _single_node(self, candidates: list[JobState]) -> Iterator[tuple[JobState, ...]]:
        """Yields sets of victims that empty enough of one node, best first."""
        need = int(self._job.demand.get("devices", 0.0))
        if not 0 < need <= self._state.cells.machine_size:
            return
        by_node: dict[int, list[JobState]] = {}
        for other in candidates:
            for node in dict.fromkeys(grain.node for grain in other.grains):
                by_node.setdefault(node, []).append(other)
        offers = []
        for node, others in sorted(by_node.items(), key=lambda item: (self._price(item[1][0]), item[0]))[:_NODE_LIMIT]:
            state = self._state.cells.nodes[node]
            if state.is_open and need <= state.model.wiring.num_devices:
                offers += [(self._rank(chosen), node, chosen) for chosen in self._on_node(node, others, need)]
        offers.sort(key=lambda offer: offer[:2])
        yield from (chosen for _, _, chosen in offers[:8])

    def _on_node(self, node: int, others: list[JobState], need: int) -> Iterator[tuple[JobState, ...]]:
        held = self._state.on_node[node]
        free = self._state.cells.nodes[node].free
        for leaving in self._leaving:
            free |= held.get(leaving.request.job_id, 0)
        masks = {other.request.job_id: held.get(other.request.job_id, 0) for other in others}
        # No device has two holders: what some of them free together is the sum of what each of them frees.
        few = [(other, masks[other.request.job_id].bit_count()) for other in others[:16]]
        most = sorted((count for _, count in few), reverse=True)
        lacking = need - free.bit_count()
        for count in range(1, min(_JOINT_VICTIMS, len(few)) + 1):
            if sum(most[:count]) < lacking:
                continue
            sets = (chosen for chosen in combinations(few, count) if sum(freed for _, freed in chosen) >= lacking)
            yield min((tuple(other for other, _ in chosen) for chosen in sets), key=self._rank)
            return
        mask, greedy = free, []
        for other in others:
            mask |= masks[other.request.job_id]
            greedy.append(other)
            if mask.bit_count() >= need:
                yield self._prune_node(greedy, free, masks, need)
                return

    def _prune_node(self, chosen: list[JobState], free: int, masks: dict[str, int], need: int) -> tuple[JobState, ...]:
        kept = list(chosen)
        for other in sorted(chosen, key=self._price, reverse=True):
            rest = free
            for left in kept:
                rest |= masks[left.request.job_id] if left is not other else 0
            if rest.bit_count() >= need:
                kept.remove(other)
        return tuple(kept)

    def _greedy(self, candidates: list[JobState]) -> tuple[JobState, ...] | None:
        """Adds the cheapest until the job fits, then gives back in reverse whoever was not needed."""
        free = self._state.cells.free
        leaving = sum(other.charge.get("devices", 0.0) for other in self._leaving)
        need = self._job.demand.get("devices", 0.0) - free - leaving
        low, high = 0, 0
        while high < len(candidates) and need > 0:
            need -= candidates[high].charge.get("devices", 0.0)
            high += 1
        if need > 0:
            return None
        high = max(high, 1)
        while self._try(candidates[:high]) is None:
            if high == len(candidates):
                return None
            low, high = high, min(2 * high, len(candidates))
        while high - low > 1:
            middle = (low + high) // 2
            if self._try(candidates[:middle]) is not None:
                high = middle
            else:
                low = middle
        kept = candidates[:high]
        placement = self._try(kept)
        assert placement is not None, "the bound of a search that succeeded fits"
        needed = {node for grain in placement.grains for node in [grain.node]}
        near = [v for v in kept if any(grain.node in needed for grain in v.grains)]
        if len(near) < len(kept) and self._try(near) is not None:
            kept = near
        for other in sorted(kept, key=self._price, reverse=True)[:_PRUNE_LIMIT]:
            fewer = [v for v in kept if v is not other]
            if self._try(fewer) is not None:
                kept = fewer
        return tuple(kept)

    def _try(self, victims: Iterable[JobState]) -> GangPlacement | None:
        gone = [*self._leaving, *victims]
        key = tuple(other.request.job_id for other in gone)
        if key not in self._tried:
            self._tried[key] = place_without(self._state, self._job, gone, self._holds)
        return self._tried[key]


def is_plan_open(state: ClusterState, plan: FuturePlan) -> bool:
    """Whether every node of a plan still takes work and its devices are whole."""
    for grain in plan.grains:
        node = state.cells.nodes[grain.node]
        if not node.is_open or grain.mask & mask_of(node.spec.broken):
            return False
    return True

"""Where a whole gang could stand now: the search over nodes, racks and devices.

Owns the choice of cells for one job, all roles or none. Works on `Cells` through its journal: a placement that is
returned is taken, one that failed is rolled back. Knows nothing of quota, order or time. Roles that ask for the same
devices form one ring (a PyTorch master and its workers) and are placed together.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import gt, itemgetter

from millpond.jobs.scheduling.cells import Cells, Grain, NodeState, Pool, merge_grains, milli
from millpond.jobs.scheduling.cost import Part, bus_gbps, step_s
from millpond.jobs.scheduling.slots import Share, grain_of, grains_of, name_slots, slots_of
from millpond.jobs.scheduling.spread import anywhere, best_fit, emptiest, even_spread, least_free
from millpond.jobs.scheduling.types import GangRequest, Placement, ResourceRequest, RoleRequest, StepModel

# Racks that are looked into before a gang is spread over several.
_RACK_TRIES = 8
# Placements whose speeds differ by less may count as equal.
_GRAIN = 1.02


@dataclass(frozen=True, slots=True)
class GangPlacement:
    """Cells for every role of a job.

    Attributes:
        roles: Placements by role, ranks along the ring.
        grains: What is taken on the nodes.
        parts: The devices by machine in ring order.
        step_s: Time of a step here; 0 when the job has no step model.
    """

    roles: dict[str, tuple[Placement, ...]]
    grains: tuple[Grain, ...]
    parts: tuple[Part, ...]
    step_s: float

    @property
    def gbps(self) -> float:
        """Bus bandwidth of the job's ring."""
        return bus_gbps(self.parts) if self.parts and sum(p.mask.bit_count() for p in self.parts) > 1 else 0.0


Allowed = Callable[[tuple[RoleRequest, ...]], bool]
MayTake = Callable[[str, int], bool]


def place_gang(
    cells: Cells, request: GangRequest, may_take: MayTake, allowed: Allowed | None = None, *, is_named: bool = True
) -> GangPlacement | None:
    """Takes cells for every role, fewer replicas of elastic roles when all do not fit. None: nothing was taken.

    Args:
        cells: The free capacity; on success the placement is taken there.
        request: The job.
        may_take: Whether the job may have so many devices of a type that it did not name itself.
        allowed: Asked before each size is tried; the quota of elastic jobs.
        is_named: Whether each replica gets its place; a look ahead asks for the cells alone.
    """
    for roles in sizes(request.roles):
        if allowed is not None and not allowed(roles):
            continue
        mark = cells.mark()
        placement = _Search(cells, request, may_take, is_named).run(roles)
        if placement is not None:
            return placement
        cells.rollback(mark)
    return None


def sizes(roles: tuple[RoleRequest, ...]) -> Iterator[tuple[RoleRequest, ...]]:
    """Yields the roles at full size, then elastic ones smaller and smaller down to their least size."""
    yield roles
    slack = max((role.replicas - (role.min_replicas or role.replicas) for role in roles), default=0)
    for cut in range(1, slack + 1):
        if slack <= 16 or cut == slack or cut % (slack // 16) == 0:
            yield tuple(_shrunk(role, cut) for role in roles)


def _shrunk(role: RoleRequest, cut: int) -> RoleRequest:
    return replace(role, replicas=max(role.min_replicas or role.replicas, role.replicas - cut))


class _Search:
    """One attempt to place a gang."""

    def __init__(self, cells: Cells, request: GangRequest, may_take: MayTake, is_named: bool) -> None:
        self._cells = cells
        self._request = request
        self._may_take = may_take
        self._is_named = is_named
        self._grains: list[Grain] = []
        self._used: dict[int, None] = {}

    def run(self, roles: tuple[RoleRequest, ...]) -> GangPlacement | None:
        rings: dict[tuple[int, str | None], list[RoleRequest]] = {}
        for role in roles:
            if role.resources.devices and role.replicas:
                rings.setdefault((role.resources.devices, role.resources.device_type), []).append(role)
        placements: dict[str, tuple[Placement, ...]] = {}
        largest: tuple[Part, ...] = ()
        for ring in sorted(rings.values(), key=lambda ring: -ring[0].resources.devices):
            parts = self._place_ring(ring, placements)
            if parts is None:
                return None
            if sum(p.mask.bit_count() for p in parts) > sum(p.mask.bit_count() for p in largest):
                largest = parts
        for role in roles:
            if not role.resources.devices and not self._place_plain(role, placements):
                return None
        ordered = {role.name: placements.get(role.name, ()) for role in roles}
        step = self._request.step
        return GangPlacement(ordered, tuple(self._grains), largest, step_s(largest, step) if step and largest else 0.0)

    # Roles with devices --------------------------------------------------------------------------------------

    def _place_ring(
        self, ring: list[RoleRequest], placements: dict[str, tuple[Placement, ...]]
    ) -> tuple[Part, ...] | None:
        need = ring[0].resources if len(ring) == 1 else _largest_of(ring)
        count = sum(role.replicas for role in ring)
        shares = self._best_shares(need, count)
        if shares is None:
            return None
        parts = tuple(Part(self._cells.nodes[node].model, mask) for node, _, mask in shares)
        slots = slots_of(shares, parts, need.devices) if self._is_named or len(ring) > 1 else []
        taken = [grain_of(share, need) for share in shares] if len(ring) == 1 else []
        start = 0
        for role in ring:
            own = slots[start : start + role.replicas]
            start += role.replicas
            if len(ring) > 1:
                taken += grains_of(role, own)
            if self._is_named:
                placements[role.name] = name_slots(self._cells.nodes, self._request, role, own)
        for grain in taken if len(ring) == 1 else merge_grains(taken):
            self._cells.take(grain)
            self._used[grain.node] = None
        self._grains += taken
        return parts

    def _best_shares(self, need: ResourceRequest, count: int) -> list[Share] | None:
        pools = self._pools(need, count)
        size = need.devices * count
        offers = [
            shares
            for pool in pools
            if self._cells.pool_free[pool] >= size
            for shares in self._offers(pool, need, count)
        ]
        if not offers and len(pools) > 1:
            return self._mixed_shares(pools, need, count)
        if len(offers) > 1:
            return max(offers, key=self._merit)
        return offers[0] if offers else None

    def _mixed_shares(self, pools: list[Pool], need: ResourceRequest, count: int) -> list[Share] | None:
        """Over machines of one device type that are wired differently: only when no single kind has room."""
        for _, group in groupby(pools, key=itemgetter(0)):
            mixed = tuple(group)
            room = sum(self._cells.pool_free[pool] for pool in mixed)
            if len(mixed) > 1 and room >= need.devices * count and not self._cells.is_blind:
                offers = list(self._split_offers(mixed, need, count))
                if offers:
                    return max(offers, key=self._merit)
        return None

    def _pools(self, need: ResourceRequest, count: int) -> list[Pool]:
        filled = sorted(pool for pool, groups in self._cells.groups.items() if groups)
        if need.device_type is not None:
            return [pool for pool in filled if pool[0] == need.device_type]
        return [pool for pool in filled if self._may_take(pool[0], need.devices * count)]

    def _merit(self, shares: list[Share]) -> tuple[float, ...]:
        parts, racks = [], set()
        left, harm = 0, 0.0
        for index, _, mask in shares:
            state = self._cells.nodes[index]
            parts.append(Part(state.model, mask))
            racks.add(state.spec.rack)
            rest = state.free & ~mask
            left += rest.bit_count()
            harm += state.model.quality(state.free) - state.model.quality(rest)
        return (speed(parts, self._request.step), -len(racks), -len(shares), -left, -harm)

    def _offers(self, pool: Pool, need: ResourceRequest, count: int) -> Iterator[list[Share]]:
        if self._cells.is_blind:
            yield from self._scattered(pool, need, count)
            return
        single = self._one_node(pool, need, count)
        if single is not None:
            yield [single]
        if single is None or self._is_way_out_faster(single):
            yield from self._split_offers((pool,), need, count)

    def _is_way_out_faster(self, single: Share) -> bool:
        """Whether halves of the job could talk faster over network cards than its devices do on one machine."""
        model = self._cells.nodes[single[0]].model
        reach = single[2].bit_count() // 2 / max(len(set(model.wiring.pcie_switch)), 1)
        return self._cells.is_wired and model.ring(single[2]).gbps < min(reach, 1.0) * model.wiring.network_gbps

    def _split_offers(self, pools: tuple[Pool, ...], need: ResourceRequest, count: int) -> Iterator[list[Share]]:
        limit = self._request.aggregation.max_parts if self._request.aggregation else None
        if limit != 1:
            for shares in self._many_nodes(pools, need, count):
                if limit is None or len(shares) <= limit:
                    yield shares

    def _one_node(self, pool: Pool, need: ResourceRequest, count: int) -> Share | None:
        size = need.devices * count
        groups = self._cells.groups[pool]
        ranked = []
        rates: dict[tuple[float, float], float] = {}  # by what tells subsets of one size apart
        for free, members in groups.items():
            if free.bit_count() >= size:
                if not self._cells.is_wired:
                    ranked.append((0.0, free.bit_count(), 0.0, free, lowest(free, size)))
                    continue
                model = self._cells.nodes[members[0]].model
                mask = model.best_subset(free, size)
                kind = (model.ring(mask).gbps, model.wiring.hop_s)
                if kind not in rates:
                    rates[kind] = speed([Part(model, mask)], self._request.step)
                rate = rates[kind]
                ranked.append((-rate, free.bit_count(), -model.quality(free & ~mask), free, mask))
        for _, _, _, free, mask in sorted(ranked):
            for index in groups[free]:
                state = self._cells.nodes[index]
                if self._matches(state) and state.fits(need, count) >= count:
                    return (index, count, mask)
        return None

    def _scattered(self, pool: Pool, need: ResourceRequest, count: int) -> Iterator[list[Share]]:
        """What a scheduler of single pods does: each replica to the emptiest node, the lowest free devices there."""
        groups = self._cells.groups[pool].items()
        nodes = sorted(index for free, members in groups if free.bit_count() >= need.devices for index in members)
        rooms = [self._room(index, need, count) for index in nodes]
        taken = anywhere(rooms, count, self._request.job_id) if self._cells.is_random else emptiest(rooms, count)
        if taken is not None:
            shares = [(index, replicas) for index, replicas in zip(nodes, taken, strict=True) if replicas]
            yield [(index, n, lowest(self._cells.nodes[index].free, n * need.devices)) for index, n in shares]

    def _many_nodes(self, pools: tuple[Pool, ...], need: ResourceRequest, count: int) -> Iterator[list[Share]]:
        size = need.devices * count
        racks: Mapping[str, int] = self._cells.rack_free[pools[0]]
        if len(pools) > 1:
            racks = sum((Counter(self._cells.rack_free[pool]) for pool in pools), Counter())
        roomy = sorted((free, rack) for rack, free in racks.items() if free >= size)
        for _, rack in roomy[:_RACK_TRIES]:
            offers = list(self._split(self._nodes_in(pools, rack), need, count))
            if offers:
                yield from offers
                return
        chosen: list[int] = []
        room = 0
        for _, rack in sorted(((-free, rack) for rack, free in racks.items() if free >= need.devices)):
            nodes = self._nodes_in(pools, rack)
            chosen += nodes
            room += sum(self._rooms(nodes, need, count))
            if room >= count:
                yield from self._split(chosen, need, count)
                return

    def _nodes_in(self, pools: tuple[Pool, ...], rack: str) -> Sequence[int]:
        if len(pools) == 1:
            return self._cells.rack_nodes[pools[0], rack]
        return [index for pool in pools for index in self._cells.rack_nodes.get((pool, rack), ())]

    def _pick(self, index: int, size: int) -> int:
        state = self._cells.nodes[index]
        return state.model.best_part(state.free, size) if self._cells.is_wired else lowest(state.free, size)

    def _room(self, index: int, need: ResourceRequest, count: int) -> int:
        state = self._cells.nodes[index]
        if state.lost or state.cordoned or not self._matches(state):
            return 0
        return state.fits(need, count)

    def _rooms(self, nodes: Sequence[int], need: ResourceRequest, count: int) -> list[int]:
        every, least = self._cells.nodes, need.devices
        return [self._room(i, need, count) if every[i].free.bit_count() >= least else 0 for i in nodes]

    def _split(self, nodes: Sequence[int], need: ResourceRequest, count: int) -> Iterator[list[Share]]:
        rooms = self._rooms(nodes, need, count)
        if sum(rooms) < count:
            return
        is_pair = len(nodes) == 2 and self._cells.is_wired
        if not is_pair:
            nodes = [index for index, room in zip(nodes, rooms, strict=True) if room]
            rooms = [room for room in rooms if room]
        seen = []
        tried = [best_fit(rooms, count), even_spread(rooms, count), least_free(rooms, count)]
        if is_pair:
            tried += [[first, count - first] for first in range(count + 1)]
        for counts in tried:
            if counts is None or counts in seen or any(map(gt, counts, rooms)):
                continue
            seen.append(counts)
            shares = []
            for index, replicas in zip(nodes, counts, strict=True):
                if replicas:
                    shares.append((index, replicas, self._pick(index, replicas * need.devices)))
            if not self._cells.is_wired:
                yield shares
                return
            yield sorted(shares, key=lambda share: (self._cells.nodes[share[0]].spec.rack, share[0]))

    # Roles without devices -----------------------------------------------------------------------------------

    def _place_plain(self, role: RoleRequest, placements: dict[str, tuple[Placement, ...]]) -> bool:
        own: list[tuple[int, tuple[int, ...]]] = []
        for index in self._plain_nodes():
            left = role.replicas - len(own)
            if left <= 0:
                break
            for _ in range(self._room(index, role.resources, left)):
                self._cells.take(self._note(index, 0, role.resources))
                own.append((index, ()))
        if len(own) < role.replicas:
            return False
        nodes = self._cells.nodes
        placements[role.name] = tuple(Placement(nodes[node].spec.name, (), rank) for rank, (node, _) in enumerate(own))
        return True

    def _plain_nodes(self) -> Iterator[int]:
        """The job's own nodes, then those without devices, then those with the fewest free devices."""
        mine = tuple(self._used)
        yield from mine
        groups = [
            (self._cells.nodes[members[0]].model.wiring.num_devices > 0, free.bit_count(), pool, free)
            for pool, by_mask in self._cells.groups.items()
            for free, members in by_mask.items()
        ]
        for _, _, pool, free in sorted(groups):
            for index in self._cells.groups[pool].get(free, ()):
                if index not in mine:
                    yield index

    def _note(self, node: int, mask: int, need: ResourceRequest) -> Grain:
        grain = Grain(node, mask, milli(need.cpus), need.memory_bytes)
        self._grains.append(grain)
        self._used[node] = None
        return grain

    def _matches(self, state: NodeState) -> bool:
        if not self._request.selector:
            return True
        labels = dict(state.spec.labels)
        return all(labels.get(key) == value for key, value in self._request.selector)


def _largest_of(ring: Sequence[RoleRequest]) -> ResourceRequest:
    """What has room for a replica of any of these roles."""
    return replace(
        ring[0].resources,
        cpus=max(role.resources.cpus for role in ring),
        memory_bytes=max(role.resources.memory_bytes for role in ring),
    )


def lowest(free: int, size: int) -> int:
    """The free devices with the lowest numbers: what is taken when wiring does not count."""
    mask = 0
    for _ in range(size):
        mask |= (free ^ mask) & -(free ^ mask)
    return mask


def speed(parts: Sequence[Part], step: StepModel | None) -> float:
    """How good a placement is, coarse on purpose: within one fiftieth of it, packing decides."""
    if sum(part.mask.bit_count() for part in parts) <= 1:
        return 1.0
    if step is None or step.compute_s <= 0:
        return bus_gbps(parts)
    return _GRAIN ** round(math.log(step.compute_s / max(step_s(parts, step), 1e-12), _GRAIN))

"""`Cells`: which devices, CPUs and memory are free on which node, indexed so that a search never walks all nodes.

Owns the free capacity and nothing of who holds the rest or why. Every change goes through `take` and `give` and is
written to a journal, so that a search can try something on the real state and `rollback`. Nodes of one pool (device
type and wiring) with the same free devices sit in one group: a cluster of any size has few groups.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from millpond.jobs.scheduling.rings import WiringModel, mask_of, model_of
from millpond.jobs.scheduling.types import NodeSpec, ResourceRequest

Pool = tuple[str, str]  # device type, kind of wiring


def milli(cpus: float) -> int:
    """CPUs as thousandths: sums of them are exact."""
    return round(cpus * 1000)


class Grain(NamedTuple):
    """Capacity taken on one node. A tuple: a pass makes tens of them."""

    node: int
    mask: int
    cpu_milli: int
    memory_bytes: int


@dataclass(slots=True)
class NodeState:
    """One node: what it is and what is free on it."""

    index: int
    spec: NodeSpec
    model: WiringModel
    pool: Pool
    free: int
    cpu_milli: int
    memory_bytes: int
    lost: bool = False
    cordoned: bool = False

    @property
    def is_open(self) -> bool:
        """Whether new work may go here."""
        return not (self.lost or self.cordoned)

    def fits(self, need: ResourceRequest, limit: int) -> int:
        """How many replicas of a role fit here now, at most `limit`."""
        if need.devices and (room := self.free.bit_count() // need.devices) < limit:
            limit = room
        if need.cpus:
            limit = min(limit, self.cpu_milli // milli(need.cpus))
        if need.memory_bytes:
            limit = min(limit, self.memory_bytes // need.memory_bytes)
        return max(limit, 0)


class Cells:
    """The free capacity of a cluster."""

    def __init__(self) -> None:
        self.nodes: list[NodeState] = []
        self.groups: dict[Pool, dict[int, list[int]]] = {}
        self.rack_free: dict[Pool, dict[str, int]] = {}
        self.pool_free: dict[Pool, int] = {}
        self.rack_nodes: dict[tuple[Pool, str], list[int]] = {}
        self.is_wired = True  # False: placements are packed and know nothing of links
        self.is_blind = False  # True: replicas go to the emptiest nodes one by one
        self.is_random = False  # True as well: to any nodes
        self.version = 0  # grows when capacity comes back: what failed before may fit now
        self.machine_size = 0  # devices of the largest machine there ever was
        self.network_gbps = 0.0  # way out of the best connected machine there ever was
        self.supply = 0  # grows when the cluster itself got larger: what never fitted may fit now
        self.free = 0  # devices free in all pools
        self._largest: int | None = None  # most devices free on one machine; None: to be counted
        self._by_name: dict[str, int] = {}
        self._journal: list[tuple[Grain, bool]] = []

    def find(self, name: str) -> NodeState | None:
        """Returns a node by name, lost ones included."""
        index = self._by_name.get(name)
        return None if index is None else self.nodes[index]

    def join(self, spec: NodeSpec) -> tuple[NodeState, bool]:
        """Adds a node, brings a lost one back empty, or takes new labels. Says whether its capacity is new."""
        state = self.find(spec.name)
        if state is not None and not state.lost and is_same_machine(state.spec, spec):
            self._relabel(state, spec)
            return state, False
        model = model_of(spec.wiring)
        pool = (spec.device_type or "", spec.wiring.kind)
        self.machine_size = max(self.machine_size, spec.wiring.num_devices)
        self.network_gbps = max(self.network_gbps, spec.wiring.network_gbps)
        free = mask_of(range(spec.wiring.num_devices)) & ~mask_of(spec.broken)
        index = state.index if state is not None else len(self.nodes)
        fresh = NodeState(index, spec, model, pool, free, milli(spec.cpus), spec.memory_bytes)
        if state is None:
            self.nodes.append(fresh)
            self._by_name[spec.name] = index
        else:
            self.nodes[index] = fresh
        self._enter(fresh)
        insort_new(self.rack_nodes.setdefault((fresh.pool, spec.rack), []), index)
        self.gain()
        return fresh, True

    def lose(self, state: NodeState) -> None:
        """Takes a node out; what it held is settled by the caller."""
        if state.is_open:
            self._leave(state)
        state.lost = True
        self.rack_nodes[state.pool, state.spec.rack].remove(state.index)

    def cordon(self, state: NodeState, cordoned: bool) -> None:
        """Closes a node for new work or opens it again."""
        was_open = state.is_open
        state.cordoned = cordoned
        if was_open and not state.is_open:
            self._leave(state)
        elif state.is_open and not was_open:
            self._enter(state)
            self.gain()

    def take(self, grain: Grain) -> None:
        """Marks capacity as held."""
        state = self.nodes[grain.node]
        assert grain.mask & ~state.free == 0, "devices are taken twice"
        self._shift(state, state.free & ~grain.mask, -grain.cpu_milli, -grain.memory_bytes)
        self._journal.append((grain, True))

    def give(self, grain: Grain) -> None:
        """Marks capacity as free again; on a lost node there is nothing to free."""
        state = self.nodes[grain.node]
        assert grain.mask & state.free == 0, "devices are freed twice"
        broken = grain.mask & mask_of(state.spec.broken) if state.spec.broken else 0
        if broken:  # broke while it was held: it does not come back
            grain = grain._replace(mask=grain.mask & ~broken)
        self._shift(state, state.free | grain.mask, grain.cpu_milli, grain.memory_bytes)
        self._journal.append((grain, False))

    def has_room(self, devices: int, together: int) -> bool:
        """Whether so many devices are free at all, and so many of them on one machine: a cheap look before a search."""
        if self.free < devices:
            return False
        if self._largest is None:
            self._largest = max((free.bit_count() for groups in self.groups.values() for free in groups), default=-1)
        return self._largest >= together

    def mark(self) -> int:
        """A point in the journal to roll back to."""
        return len(self._journal)

    def rollback(self, mark: int) -> None:
        """Undoes everything since the mark."""
        while len(self._journal) > mark:
            grain, taken = self._journal.pop()
            state = self.nodes[grain.node]
            sign = 1 if taken else -1
            self._shift(state, state.free ^ grain.mask, sign * grain.cpu_milli, sign * grain.memory_bytes)

    def gain(self) -> None:
        """Counts a change of the cluster or its quotas that may let in what never fitted."""
        self.supply += 1
        self.version += 1

    def commit(self) -> None:
        """Forgets the journal: what was done stays done."""
        self._journal.clear()

    def _shift(self, state: NodeState, free: int, cpu_milli: int, memory_bytes: int) -> None:
        before, state.free = state.free, free
        state.cpu_milli += cpu_milli
        state.memory_bytes += memory_bytes
        if free == before or state.lost or state.cordoned:
            return
        groups, index = self.groups[state.pool], state.index
        group = groups[before]
        was, count = before.bit_count(), free.bit_count()
        if len(group) > 1:
            group.pop(bisect_left(group, index))
        else:
            del groups[before]
            if was == self._largest:
                self._largest = None
        if free in groups:
            insort(groups[free], index)
        else:
            groups[free] = [index]
        if self._largest is not None and count > self._largest:
            self._largest = count
        self.rack_free[state.pool][state.spec.rack] += count - was
        self.pool_free[state.pool] += count - was
        self.free += count - was

    def _enter(self, state: NodeState) -> None:
        rack = state.spec.rack
        groups = self.groups.get(state.pool)
        if groups is None:
            groups = self.groups[state.pool] = {}
            self.rack_free[state.pool] = {}
            self.pool_free[state.pool] = 0
        group = groups.get(state.free)
        if group is None:
            groups[state.free] = [state.index]
        else:
            insort(group, state.index)
        count = state.free.bit_count()
        racks = self.rack_free[state.pool]
        racks[rack] = racks.get(rack, 0) + count
        self.pool_free[state.pool] += count
        self.free += count
        if self._largest is not None and count > self._largest:
            self._largest = count

    def _leave(self, state: NodeState) -> None:
        group = self.groups[state.pool][state.free]
        group.pop(bisect_left(group, state.index))
        count = state.free.bit_count()
        if not group:
            del self.groups[state.pool][state.free]
            if count == self._largest:
                self._largest = None
        self.rack_free[state.pool][state.spec.rack] -= count
        self.pool_free[state.pool] -= count
        self.free -= count

    def _relabel(self, state: NodeState, spec: NodeSpec) -> None:
        broken, before = mask_of(spec.broken), mask_of(state.spec.broken)
        state.spec = spec
        free = (state.free | (before & ~broken)) & ~broken
        self._shift(state, free, 0, 0)
        self.gain()


def merge_grains(grains: Iterable[Grain]) -> tuple[Grain, ...]:
    """One grain a node: what is only kept or counted needs no more detail."""
    merged: dict[int, Grain] = {}
    for grain in grains:
        seen = merged.get(grain.node)
        merged[grain.node] = (
            grain
            if seen is None
            else Grain(
                grain.node,
                seen.mask | grain.mask,
                seen.cpu_milli + grain.cpu_milli,
                seen.memory_bytes + grain.memory_bytes,
            )
        )
    return tuple(merged.values())


def is_overlapping(planned: Iterable[Grain], taken: Iterable[Grain]) -> bool:
    """Whether some cells share a device; planned ones without devices share the whole node."""
    masks: dict[int, int] = {}
    for grain in taken:
        masks[grain.node] = masks.get(grain.node, 0) | grain.mask
    return any(grain.node in masks and (masks[grain.node] & grain.mask or not grain.mask) for grain in planned)


def insort_new(ordered: list[int], value: int) -> None:
    """Inserts a value into a sorted list unless it is there."""
    at = bisect_left(ordered, value)
    if at == len(ordered) or ordered[at] != value:
        ordered.insert(at, value)


def is_same_machine(one: NodeSpec, other: NodeSpec) -> bool:
    """Whether two descriptions differ in labels and broken devices at most."""
    return (one.wiring, one.device_type, one.cpus, one.memory_bytes, one.rack) == (
        other.wiring, other.device_type, other.cpus, other.memory_bytes, other.rack,
    )  # fmt: skip

"""What a set of devices of one machine is worth: the bandwidth of its best rings, and the order along them.

Owns the exact search for edge-disjoint rings over direct links and the fall-back to PCIe and the socket link. A set of
devices is a bit mask. Knows one machine at a time; `cost` puts machines together. One `WiringModel` a kind of machine
remembers what it computed: 256 masks for eight devices.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import combinations, pairwise

from millpond.api.topology import NodeWiring

# Between PCIe switches of one socket a transfer crosses the root complex and loses about a quarter.
_ACROSS_SWITCHES = 0.75
# Sets up to this size are searched exactly; larger machines without a switch are ordered greedily.
_EXACT_DEVICES = 8
# Paths outnumber rings by far, and behind a network card their number hardly matters: this many sets are tried.
_PATH_TRIES = 60


def devices_of(mask: int) -> tuple[int, ...]:
    """Returns the device numbers of a mask, ascending."""
    return tuple(device for device in range(mask.bit_length()) if mask >> device & 1)


def mask_of(devices: tuple[int, ...] | frozenset[int] | range) -> int:
    """Returns the mask of some device numbers."""
    mask = 0
    for device in devices:
        mask |= 1 << device
    return mask


@dataclass(frozen=True, slots=True)
class Ring:
    """The best way round a set of devices.

    Attributes:
        gbps: Bus bandwidth of all parallel rings together.
        order: The devices along the first ring.
        direct: How many of its `len(order)` edges run on direct links or the switch.
    """

    gbps: float
    order: tuple[int, ...]
    direct: int


@dataclass(slots=True)
class WiringModel:
    """Answers about subsets of one kind of machine; every answer is computed once."""

    wiring: NodeWiring
    _count: dict[tuple[int, int], int] = field(init=False, repr=False)
    _rings: dict[int, Ring] = field(init=False, repr=False, default_factory=dict)
    _paths: dict[int, Ring] = field(init=False, repr=False, default_factory=dict)
    _best: dict[tuple[int, int], int] = field(init=False, repr=False, default_factory=dict)
    _parts: dict[tuple[int, int], int] = field(init=False, repr=False, default_factory=dict)
    _quality: dict[int, float] = field(init=False, repr=False, default_factory=dict)
    _networks: dict[int, float] = field(init=False, repr=False, default_factory=dict)
    _ways_out: dict[int, float] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        self._count = {}
        for low, high, count in self.wiring.links:
            self._count[low, high] = self._count[high, low] = count

    def ring(self, mask: int) -> Ring:
        """Returns the best ring over a set of devices; a single device has no ring and infinite bandwidth."""
        ring = self._rings.get(mask)
        if ring is None:
            ring = self._rings[mask] = self._search(devices_of(mask), closed=True)
        return ring

    def path(self, mask: int) -> Ring:
        """Returns the best path through a set of devices, as a ring over several machines needs."""
        path = self._paths.get(mask)
        if path is None:
            path = self._paths[mask] = self._search(devices_of(mask), closed=False)
        return path

    def network_gbps(self, mask: int) -> float:
        """Bandwidth of the network cards that these devices reach below their own PCIe switches."""
        gbps = self._networks.get(mask)
        if gbps is None:
            switches = {self.wiring.pcie_switch[device] for device in devices_of(mask)}
            near = sum(nic.gbps for nic in self.wiring.nics if nic.pcie_switch in switches)
            gbps = self._networks[mask] = near or max((nic.gbps for nic in self.wiring.nics), default=0.1)
        return gbps

    def way_out_gbps(self, mask: int) -> float:
        """Bandwidth of these devices as a part of a ring over several machines: their path, then their cards."""
        gbps = self._ways_out.get(mask)
        if gbps is None:
            gbps = self._ways_out[mask] = min(self.path(mask).gbps, self.network_gbps(mask))
        return gbps

    @property
    def is_even(self) -> bool:
        """Whether one set of devices is as good as any other of its size: a switch between all, one way out."""
        return self.wiring.switch_gbps > 0 and len(self.wiring.nics) <= 1

    def best_subset(self, free: int, size: int) -> int:
        """Returns the devices to take: best ring, then the least harm to what stays, then the most compact.

        NOTE: taking the most links first picks wrong five-sets on a DGX-1; this looks at every subset.
        """
        key = (free, size)
        best = self._best.get(key)
        if best is None:
            best = self._best[key] = self._choose(free, size)
        return best

    def best_part(self, free: int, size: int) -> int:
        """Returns the devices to take for a job on several machines: the best way out, then as `best_subset`."""
        key = (free, size)
        best = self._parts.get(key)
        if best is None:
            best, best_gbps = 0, -1.0
            ranked = [(self.network_gbps(mask), self._merit(free, mask), mask) for mask in self._subsets(free, size)]
            for network_gbps, _, mask in sorted(ranked, reverse=True):
                if network_gbps <= best_gbps:
                    break
                gbps = min(network_gbps, self.path(mask).gbps)
                if gbps > best_gbps:
                    best, best_gbps = mask, gbps
            self._parts[key] = best
        return best

    def best_gbps(self, free: int, size: int) -> float:
        """Bandwidth of the best ring of `size` devices among the free ones."""
        return self.ring(self.best_subset(free, size)).gbps

    def quality(self, free: int) -> float:
        """What a free set is good for: the best bandwidth of each size it can still give, added up."""
        total = self._quality.get(free)
        if total is None:
            sizes = range(2, free.bit_count() + 1)
            total = self._quality[free] = sum(self._bandwidth_at(free, size) for size in sizes)
        return total

    def edge_gbps(self, one: int, other: int) -> float:
        """Bandwidth between two devices of the machine, by the best way there is."""
        count = self._count.get((one, other), 0)
        if count:
            return count * self.wiring.link_gbps
        return self.wiring.switch_gbps or self._host_gbps(one, other)

    def is_direct(self, one: int, other: int) -> bool:
        """Whether two devices talk over a direct link or the switch."""
        return self.wiring.switch_gbps > 0 or (one, other) in self._count

    def _host_gbps(self, one: int, other: int) -> float:
        if self.wiring.pcie_switch[one] == self.wiring.pcie_switch[other]:
            return self.wiring.pcie_gbps
        if self.wiring.socket[one] == self.wiring.socket[other]:
            return self.wiring.pcie_gbps * _ACROSS_SWITCHES
        return min(self.wiring.socket_gbps, self.wiring.pcie_gbps * _ACROSS_SWITCHES)

    def _bandwidth_at(self, free: int, size: int) -> float:
        if self.wiring.switch_gbps:
            return self.wiring.switch_gbps
        return max(self.ring(mask).gbps for mask in self._subsets(free, size))

    def _subsets(self, free: int, size: int) -> Iterator[int]:
        devices = devices_of(free)
        if len(devices) <= _EXACT_DEVICES:
            for chosen in combinations(devices, size):
                yield mask_of(chosen)
            return
        # Large machine: grow a set from each device by its best edges, and try every window of neighbours.
        for start in range(len(devices) - size + 1):
            yield mask_of(devices[start : start + size])
        for first in devices:
            grown = [first]
            while len(grown) < size:
                rest = [device for device in devices if device not in grown]
                gains = [(sum(self.edge_gbps(device, other) for other in grown), -device) for device in rest]
                grown.append(-max(gains)[1])
            yield mask_of(tuple(grown))

    def _choose(self, free: int, size: int) -> int:
        return max(self._subsets(free, size), key=lambda mask: self._merit(free, mask))

    def _merit(self, free: int, mask: int) -> tuple[float, float, int, int, int]:
        switches = {self.wiring.pcie_switch[device] for device in devices_of(mask)}
        sockets = {self.wiring.socket[device] for device in devices_of(mask)}
        rest = {self.wiring.pcie_switch[device] for device in devices_of(free & ~mask)}
        broken = len(switches & rest)  # switches cut in two
        left = 0.0 if self.wiring.switch_gbps else self.quality(free & ~mask)
        return (self.ring(mask).gbps, left, -len(sockets), -broken, -mask)

    def _search(self, devices: tuple[int, ...], *, closed: bool) -> Ring:
        wiring, size = self.wiring, len(devices)
        if size <= 1:
            return Ring(float("inf"), devices, 0)
        if wiring.switch_gbps:
            return Ring(wiring.switch_gbps, devices, size)
        if size == 2:
            direct = int(devices in self._count or (devices[0], devices[1]) in self._count)
            return Ring(self.edge_gbps(*devices), devices, 2 * direct)
        if size <= _EXACT_DEVICES and wiring.links:
            rings = self._pack(devices, closed=closed)
            if rings:
                return Ring(2 * len(rings) * wiring.link_gbps, rings[0], size)
        order = self._order(devices)
        edges = list(pairwise(order)) + ([(order[-1], order[0])] if closed else [])
        return Ring(min(self.edge_gbps(*edge) for edge in edges), order, sum(self.is_direct(*edge) for edge in edges))

    def _pack(self, devices: tuple[int, ...], *, closed: bool) -> list[tuple[int, ...]]:
        """Returns as many edge-disjoint rings (or paths) over direct links as fit at once."""
        tours = list(self._tours(devices, closed=closed))
        left = dict(self._count)
        degrees = [sum(left.get((one, other), 0) for other in devices if other != one) for one in devices]
        bound = min(degrees) // 2 if closed else sum(degrees) // 2 // (len(devices) - 1)
        budget = 1 << 30 if closed else _PATH_TRIES
        best: list[tuple[int, ...]] = []

        def extend(start: int, chosen: list[tuple[int, ...]]) -> None:
            nonlocal best, budget
            budget -= 1
            if len(chosen) > len(best):
                best = list(chosen)
            for index in range(start, len(tours)):
                if len(best) >= bound or budget <= 0:
                    return
                edges = _edges(tours[index], closed=closed)
                if all(left.get(edge, 0) > 0 for edge in edges):
                    _count_edges(left, edges, -1)
                    chosen.append(tours[index])
                    extend(index, chosen)
                    chosen.pop()
                    _count_edges(left, edges, 1)

        extend(0, [])
        return best

    def _tours(self, devices: tuple[int, ...], *, closed: bool) -> Iterator[tuple[int, ...]]:
        """Yields every ring (each once) or path over direct links."""
        size = len(devices)
        starts = devices[:1] if closed else devices

        def walk(tour: list[int]) -> Iterator[tuple[int, ...]]:
            if len(tour) == size:
                if tour[-1] > (tour[1] if closed else tour[0]) and (not closed or (tour[-1], tour[0]) in self._count):
                    yield tuple(tour)
                return
            for device in devices:
                if device not in tour and (tour[-1], device) in self._count:
                    yield from walk([*tour, device])

        for start in starts:
            yield from walk([start])

    def _order(self, devices: tuple[int, ...]) -> tuple[int, ...]:
        """Orders devices that no ring of direct links joins: fast edges first, sockets not crossed twice."""
        order = [devices[0]]
        rest = list(devices[1:])
        while rest:
            last = order[-1]
            sockets = self.wiring.socket
            nearest = -max((self.edge_gbps(last, d), sockets[last] == sockets[d], -d) for d in rest)[2]
            rest.remove(nearest)
            order.append(nearest)
        return tuple(order)


@lru_cache(maxsize=256)
def model_of(wiring: NodeWiring) -> WiringModel:
    """The model of a wiring; equal wirings share what was computed."""
    return WiringModel(wiring)


def _edges(tour: tuple[int, ...], *, closed: bool) -> list[tuple[int, int]]:
    return list(pairwise(tour)) + ([(tour[-1], tour[0])] if closed else [])


def _count_edges(left: dict[tuple[int, int], int], edges: list[tuple[int, int]], step: int) -> None:
    for one, other in edges:
        left[one, other] += step
        left[other, one] += step

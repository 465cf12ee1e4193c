"""Rings against the exhaustive table of a DGX-1V and against brute force."""

from __future__ import annotations

from itertools import combinations, permutations

import pytest

from millpond.api.topology import NodeWiring, dgx1v_wiring, nvswitch_wiring, plain_wiring
from millpond.jobs.scheduling.cost import Part, allreduce_s, bus_gbps, ring_traffic
from millpond.jobs.scheduling.rings import WiringModel, devices_of, mask_of

# size: (bandwidth -> number of subsets with it); 6 is the way over QPI. From the research on the hybrid cube mesh.
TABLE = {
    2: {40.0: 8, 20.0: 8, 6.0: 12},
    3: {40.0: 8, 6.0: 48},
    4: {80.0: 2, 40.0: 6, 6.0: 62},
    5: {40.0: 24, 6.0: 32},
    6: {80.0: 4, 40.0: 24},
    7: {80.0: 8},
    8: {120.0: 1},
}


@pytest.mark.parametrize("size", TABLE)
def test_rings_of_a_dgx1v_are_those_of_the_table(size: int) -> None:
    model = WiringModel(dgx1v_wiring())
    seen: dict[float, int] = {}
    for chosen in combinations(range(8), size):
        gbps = model.ring(mask_of(chosen)).gbps
        seen[gbps if gbps >= 20 else 6.0] = seen.get(gbps if gbps >= 20 else 6.0, 0) + 1
    assert seen == TABLE[size]


def test_no_quad_plus_one_has_a_ring_of_direct_links() -> None:
    model = WiringModel(dgx1v_wiring())
    for extra in range(4, 8):
        assert model.ring(mask_of((0, 1, 2, 3, extra))).gbps < 20
    assert model.best_gbps(255, 5) == 40.0


def test_the_best_six_are_the_four_of_the_table() -> None:
    model = WiringModel(dgx1v_wiring())
    best = [s for s in combinations(range(8), 6) if model.ring(mask_of(s)).gbps == 80.0]
    assert best == [(0, 1, 2, 4, 5, 6), (0, 1, 3, 4, 5, 7), (0, 2, 3, 4, 6, 7), (1, 2, 3, 5, 6, 7)]


def test_rings_are_as_many_as_brute_force_packs() -> None:
    wiring = dgx1v_wiring()
    model = WiringModel(wiring)
    count = {(low, high): number for low, high, number in wiring.links}

    def edges(tour: tuple[int, ...]) -> list[tuple[int, int]]:
        return [(min(a, b), max(a, b)) for a, b in zip(tour, (*tour[1:], tour[0]), strict=True)]

    def pack(tours: list[list[tuple[int, int]]], left: dict[tuple[int, int], int]) -> int:
        best = 0
        for index, tour in enumerate(tours):
            if all(left.get(edge, 0) > 0 for edge in tour):
                rest = dict(left)
                for edge in tour:
                    rest[edge] -= 1
                best = max(best, 1 + pack(tours[index:], rest))
        return best

    for chosen in combinations(range(8), 4):
        tours = [edges((chosen[0], *rest)) for rest in permutations(chosen[1:]) if rest[0] < rest[-1]]
        rings = pack(tours, count)
        assert (model.ring(mask_of(chosen)).gbps == 40.0 * rings) if rings else model.ring(mask_of(chosen)).gbps < 20


def test_the_order_of_a_ring_follows_the_links() -> None:
    model = WiringModel(dgx1v_wiring())
    for chosen in combinations(range(8), 6):
        order = model.ring(mask_of(chosen)).order
        assert sorted(order) == list(chosen)
        for one, other in zip(order, (*order[1:], order[0]), strict=True):
            assert model.is_direct(one, other)


@pytest.mark.parametrize("size", range(1, 8))
def test_the_best_subset_has_the_best_ring_of_all(size: int) -> None:
    model = WiringModel(dgx1v_wiring())
    for free in (0b11111111, 0b11101101, 0b01111110):
        if free.bit_count() >= size:
            every = [model.ring(mask_of(chosen)).gbps for chosen in combinations(devices_of(free), size)]
            assert model.ring(model.best_subset(free, size)).gbps == max(every)


def test_behind_a_switch_any_devices_are_equal() -> None:
    model = WiringModel(nvswitch_wiring())
    assert {model.ring(mask_of(chosen)).gbps for chosen in combinations(range(8), 3)} == {235.0}


def test_one_pcie_switch_beats_two_and_two_sockets_are_worst() -> None:
    wiring = NodeWiring("two-sockets", (0, 0, 1, 1), (0, 0, 0, 1), pcie_gbps=12.0, socket_gbps=6.0)
    model = WiringModel(wiring)
    assert [model.ring(mask_of(pair)).gbps for pair in ((0, 1), (0, 2), (0, 3))] == [12.0, 9.0, 6.0]


def test_spread_over_network_cards_can_beat_packing() -> None:
    # Pollux measured it: 1+1+1+1 is faster than 2+2 when a node has one card, because the card is shared.
    model = WiringModel(dgx1v_wiring())
    seven_one = [Part(model, mask_of(range(7))), Part(model, 1)]
    four_four = [Part(model, 15), Part(model, 15)]
    assert bus_gbps(four_four) > bus_gbps(seven_one)
    assert bus_gbps([Part(model, 255)]) == 120.0


def test_an_allreduce_takes_what_the_ring_formula_says() -> None:
    model = WiringModel(plain_wiring(4, nic_gbps=1.0))
    parts = [Part(model, 0b11), Part(model, 0b11)]
    assert allreduce_s(parts, 4e9) == pytest.approx(2 * 3 / 4 * 4.0, rel=1e-3)
    assert allreduce_s(parts[:1], 12e9) == pytest.approx(1.0, rel=1e-3)
    assert allreduce_s([Part(model, 1)], 12e9) == 0.0


def test_edges_of_a_ring_are_counted_by_their_wire() -> None:
    model = WiringModel(dgx1v_wiring())
    alone = ring_traffic([Part(model, 255)])
    assert (alone.direct, alone.host, alone.network) == (8, 0, 0)
    halves = ring_traffic([Part(model, 15), Part(model, 15)])
    assert (halves.direct, halves.host, halves.network) == (6, 0, 2)

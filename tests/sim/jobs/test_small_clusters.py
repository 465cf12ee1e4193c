"""Small clusters against brute force: up to 16 devices on two machines, up to four jobs of any size."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import cache
from itertools import combinations, product

import pytest

from millpond.api.topology import dgx1v_wiring
from millpond.jobs.scheduling.cost import Part, bus_gbps
from millpond.jobs.scheduling.rings import WiringModel, devices_of, mask_of
from millpond.jobs.scheduling.types import AggregationRequest
from tests.support.gangs import Bench, workers

MODEL = WiringModel(dgx1v_wiring())


@cache
def splits(free: tuple[int, int], size: int) -> tuple[tuple[int, int], ...]:
    """Every choice of `size` free devices on two machines."""
    found = []
    for first in range(max(0, size - free[1].bit_count()), min(size, free[0].bit_count()) + 1):
        ones = [mask_of(chosen) for chosen in combinations(devices_of(free[0]), first)]
        others = [mask_of(chosen) for chosen in combinations(devices_of(free[1]), size - first)]
        found += list(product(ones, others))
    return tuple(found)


def bandwidth(masks: tuple[int, int]) -> float:
    """Bandwidth of the ring over the devices of both machines."""
    return bus_gbps([Part(MODEL, mask) for mask in masks if mask])


def best_in_turn(size: int, free: tuple[int, int]) -> float:
    """The most bandwidth that one job can have now."""
    return max(bandwidth(masks) for masks in splits(free, size))


def check_history(sizes: Sequence[int], ends: Sequence[int]) -> None:
    """Places jobs in turn, some of them ending between; each must get what brute force finds among the free."""
    bench = Bench()
    bench.nodes(2)
    free = [255, 255]
    held: dict[int, list[int]] = {}
    for number, size in enumerate(sizes):
        if ends[number] in held:
            bench.finish(f"j{ends[number]}")
            for node, mask in enumerate(held.pop(ends[number])):
                free[node] |= mask
        bench.submit(workers(f"j{number}", size, aggregation=AggregationRequest("worker")))
        bench.settle(1)
        placement = bench.job(f"j{number}").placement
        if sum(mask.bit_count() for mask in free) < size:
            assert placement is None, "it was placed on devices that are not free"
            return
        assert placement is not None, f"{size} devices fit and were not given"
        if size > 1:
            assert placement.gbps >= 0.98 * best_in_turn(size, (free[0], free[1])), (sizes, ends, number)
        held[number] = [0, 0]
        for placed in placement.roles["worker"]:
            node = int(placed.node[1:])
            held[number][node] |= mask_of(placed.device_ids)
            free[node] &= ~mask_of(placed.device_ids)


def run(histories: int, seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(histories):
        count = rng.randint(1, 4)
        check_history([rng.randint(1, 12) for _ in range(count)], [rng.randint(0, 5) for _ in range(count)])


def test_each_job_gets_the_bandwidth_that_brute_force_finds_among_what_is_free() -> None:
    run(6, seed=1)


@pytest.mark.stress
def test_each_job_gets_the_bandwidth_of_brute_force_in_a_thousand_histories() -> None:
    run(1000, seed=2)

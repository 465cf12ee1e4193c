"""Jobs that come together against brute force over all their placements: up to 16 devices and four jobs."""

from __future__ import annotations

import random

import pytest

from millpond.jobs.scheduling.rings import devices_of, mask_of
from millpond.jobs.scheduling.types import NodeJoined, NodeSpec
from tests.support.gangs import Bench, workers
from tests.support.joint import Case, Score, best_together, random_case, worth


def reserved(case: Case) -> Score:
    """Who is served in one step, and what it is worth."""
    bench = Bench()
    for index, (wiring, free) in enumerate(zip(case.wirings, case.free, strict=True)):
        taken = frozenset(range(wiring.num_devices)) - frozenset(devices_of(free))
        bench.tell(NodeJoined(NodeSpec(f"n{index}", wiring, "any", 64.0, broken=taken)))
    for number, job in enumerate(case.jobs):
        bench.submit(workers(f"j{number}", job.replicas, job.width, step=job.step, submitted_s=float(number)))
    bench.step()
    bench.replay()
    served, total = [], 0.0
    for number, job in enumerate(case.jobs):
        placement = bench.job(f"j{number}").placement
        served.append(placement is not None)
        if placement is not None:
            masks = [0] * len(case.wirings)
            for placed in placement.roles["worker"]:
                masks[int(placed.node[1:])] |= mask_of(placed.device_ids)
            total += worth(case.wirings, tuple(masks), job.step)
    return tuple(served), total


def run(cases: int, seed: int) -> None:
    rng = random.Random(seed)
    for number in range(cases):
        case = random_case(rng)
        ours, best = reserved(case), best_together(case)
        assert ours[0] == best[0], (number, case)
        assert ours[1] >= 0.98 * best[1], (number, ours[1] / best[1], case)


def test_jobs_together_are_worth_what_brute_force_finds() -> None:
    run(24, seed=1)


@pytest.mark.stress
def test_jobs_together_are_worth_what_brute_force_finds_in_a_thousand_cases() -> None:
    run(1000, seed=2)

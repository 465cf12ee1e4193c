"""Brute force over the placement of several jobs together, and random small clusters to ask it about.

The value of a placement is the scheduler's own: devices times the share of a step that is computing. Every choice of
devices for every job is looked at; only what is left free is remembered, so that no set is searched twice.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations

from millpond.api.topology import NodeWiring, dgx1v_wiring, nvswitch_wiring, plain_wiring
from millpond.jobs.scheduling.cost import Part, step_s
from millpond.jobs.scheduling.joint import NOMINAL_STEP
from millpond.jobs.scheduling.rings import WiringModel, devices_of, mask_of
from millpond.jobs.scheduling.types import StepModel

Frees = tuple[int, ...]
Score = tuple[tuple[bool, ...], float]  # who is served, in turn, and what all of it is worth


@dataclass(frozen=True)
class SmallJob:
    """`replicas` of `width` devices each, a replica on one machine."""

    replicas: int
    width: int
    step: StepModel | None

    @property
    def size(self) -> int:
        return self.replicas * self.width


@dataclass(frozen=True)
class Case:
    """Machines with some devices taken, and jobs that come together."""

    wirings: tuple[NodeWiring, ...]
    free: Frees
    jobs: tuple[SmallJob, ...]


def random_case(rng: random.Random) -> Case:
    """At most 16 devices and four jobs, which fit by number."""
    dgx, switch = dgx1v_wiring(), nvswitch_wiring(8)
    wirings = rng.choice(
        [(dgx,), (dgx, dgx), (dgx, plain_wiring(4)), (switch, switch), (plain_wiring(4),) * 4, (dgx, switch)]
    )
    taken = rng.choice([0.0, 0.0, 0.2, 0.4])
    free = tuple(mask_of(tuple(d for d in range(wiring.num_devices) if rng.random() >= taken)) for wiring in wirings)
    left = sum(mask.bit_count() for mask in free)
    jobs: list[SmallJob] = []
    for _ in range(rng.randint(2, 4)):
        width = rng.choice([1, 1, 1, 1, 2, 4])
        replicas = rng.randint(1, max(1, 8 // width))
        if replicas * width <= left:
            left -= replicas * width
            step = StepModel(rng.choice([0.02, 0.1, 0.4]), rng.choice([50, 400, 2000]) * 10**6, rng.choice([0.0, 0.5]))
            jobs.append(SmallJob(replicas, width, rng.choice([None, step])))
    return Case(wirings, free, tuple(jobs))


@cache
def model_of(wiring: NodeWiring) -> WiringModel:
    return WiringModel(wiring)


def worth(wirings: tuple[NodeWiring, ...], masks: Frees, step: StepModel | None) -> float:
    """Devices of one job times the share of its step that is computing."""
    parts = [Part(model_of(wiring), mask) for wiring, mask in zip(wirings, masks, strict=True) if mask]
    step = step or NOMINAL_STEP
    return sum(map(int.bit_count, masks)) * step.compute_s / step_s(parts, step)


@cache
def subsets(free: int, size: int) -> tuple[int, ...]:
    return tuple(mask_of(chosen) for chosen in combinations(devices_of(free), size))


def choices(free: Frees, job: SmallJob, at: int = 0, left: int | None = None) -> Iterator[Frees]:
    """Every way to give the job devices, as a mask for each machine."""
    left = job.replicas if left is None else left
    if at == len(free):
        if left == 0:
            yield ()
        return
    for count in range(min(left, free[at].bit_count() // job.width) + 1):
        for mask in subsets(free[at], count * job.width):
            for rest in choices(free, job, at + 1, left - count):
                yield (mask, *rest)


def best_together(case: Case) -> Score:
    """Who can be served, earlier jobs first, and the most that all of them together can be worth."""
    served, total = _best_large(case)
    singles = sum(1 for job in case.jobs if job.size == 1)  # one device is worth the same everywhere, so they come last
    free = sum(mask.bit_count() for mask in case.free)
    large = iter(served)
    assert singles + sum(job.size for job in case.jobs if job.size > 1) <= free, "a case fits by number"
    return tuple(True if job.size == 1 else next(large) for job in case.jobs), total + singles


def _best_large(case: Case) -> Score:
    jobs = [job for job in case.jobs if job.size > 1]
    values: dict[tuple[Frees, StepModel | None], float] = {}
    seen: dict[tuple[int, Frees], Score] = {}
    alone = [max((worth(case.wirings, m, job.step) for m in choices(case.free, job)), default=0.0) for job in jobs]
    most = [sum(alone[at:]) - 1e-9 for at in range(len(jobs) + 1)]

    def best(at: int, free: Frees) -> Score:
        if at == len(jobs):
            return ((), 0.0)
        known = seen.get((at, free))
        if known is not None:
            return known
        job = jobs[at]
        rest = best(at + 1, free)
        found: Score = ((False, *rest[0]), rest[1])
        for masks in choices(free, job):
            key = (masks, job.step)
            value = values.get(key)
            if value is None:
                value = values[key] = worth(case.wirings, masks, job.step)
            if all(found[0]) and value + most[at + 1] <= found[1]:
                continue  # even with the best for all others it would be no better
            rest = best(at + 1, tuple(have & ~mask for have, mask in zip(free, masks, strict=True)))
            found = max(found, ((True, *rest[0]), rest[1] + value))
            if all(found[0]) and found[1] >= most[at]:
                break
        seen[at, free] = found
        return found

    return best(0, case.free)

"""The simulated cluster: real decisions in virtual time, and small clusters against brute force."""

from __future__ import annotations

from itertools import combinations, permutations

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from millpond.api.topology import dgx1v_wiring
from millpond.jobs.clusters.simulated import SimulatedCluster, SimulatedJob
from millpond.jobs.scheduling.cost import Part, bus_gbps
from millpond.jobs.scheduling.log import DecisionLog, replay
from millpond.jobs.scheduling.rings import WiringModel, mask_of
from millpond.jobs.scheduling.scheduler import Scheduler
from millpond.jobs.scheduling.types import NodeJoined, NodeLost, NodeSpec, StepModel
from tests.support.gangs import Bench, workers


def nodes(count: int) -> list[NodeSpec]:
    return [NodeSpec(f"n{index}", dgx1v_wiring(), cpus=64.0) for index in range(count)]


def test_every_job_ends_and_the_log_of_a_simulation_replays() -> None:
    lines: list[bytes] = []
    cluster = SimulatedCluster(nodes(2), Scheduler(log=DecisionLog(lines.append)), start_delay_s=1.0, stop_delay_s=2.0)
    jobs = [
        SimulatedJob(workers(f"j{n}", 1 + 3 * n % 8, submitted_s=float(n), run_s_estimate=20.0, priority=n % 2), 20.0)
        for n in range(30)
    ]
    node = nodes(1)[0]
    lost = [(30.0, NodeLost("n0")), (50.0, NodeJoined(node))]
    report = cluster.run(jobs, lost)
    assert all(record.ended_s is not None for record in report.jobs.values())
    assert replay(lines).steps == report.num_steps


def test_a_job_takes_as_long_as_its_step_model_says_for_its_devices() -> None:
    cluster = SimulatedCluster(nodes(1), Scheduler())
    step = StepModel(0.5, 8_000_000_000, 0.0, 100)
    report = cluster.run([SimulatedJob(workers("job", 4, step=step))])
    record = report.jobs["job"]
    assert record.run_s == pytest.approx(100 * (0.5 + 2 * 3 / 4 * 8 / 80), rel=1e-3)
    assert (record.direct, record.host, record.network) == (4, 0, 0)


def best_total(sizes: list[int], free: list[int]) -> float:
    """Most bandwidth that all jobs together can have, over every choice of devices."""
    model = WiringModel(dgx1v_wiring())
    best = 0.0

    def place(at: int, left: list[int], total: float) -> None:
        nonlocal best
        if at == len(sizes):
            best = max(best, total)
            return
        for node in range(len(left)):
            devices = [device for device in range(8) if left[node] >> device & 1]
            seen: set[int] = set()
            for chosen in combinations(devices, sizes[at]):
                mask = mask_of(chosen)
                if mask not in seen:
                    seen.add(mask)
                    rest = list(left)
                    rest[node] &= ~mask
                    place(at + 1, rest, total + (bus_gbps([Part(model, mask)]) if sizes[at] > 1 else 0.0))

    place(0, free, 0.0)
    return best


@settings(max_examples=12, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(st.lists(st.sampled_from([1, 2, 4, 8]), min_size=1, max_size=3))
def test_jobs_of_a_power_of_two_get_the_bandwidth_that_brute_force_finds(sizes: list[int]) -> None:
    bench = Bench()
    bench.nodes(2)
    sizes = sorted(sizes, reverse=True)
    while sum(sizes) > 8:
        sizes.pop()
    bench.submit(*(workers(f"j{number}", size) for number, size in enumerate(sizes)))
    bench.settle()
    placements = [bench.job(f"j{number}").placement for number in range(len(sizes))]
    total = sum(placement.gbps for placement in placements if placement is not None)
    assert total >= 0.98 * max(best_total(list(order), [255]) for order in set(permutations(sizes)))

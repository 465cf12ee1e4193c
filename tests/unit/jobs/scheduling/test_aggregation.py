"""Jobs of one-device workers that may be split: when a split is worth it, and whom it must not harm."""

from __future__ import annotations

from millpond.api.topology import dgx1v_wiring
from millpond.jobs.clusters.simulated import SimulatedCluster, SimulatedJob
from millpond.jobs.scheduling.log import DecisionLog, replay
from millpond.jobs.scheduling.scheduler import Scheduler
from millpond.jobs.scheduling.types import AggregationRequest, GangRequest, NodeSpec, StepModel
from tests.support.gangs import Bench, workers


def splittable(name: str, size: int, *, run_s: float = 100.0, gradient_bytes: int = 0, **more: object) -> GangRequest:
    step = StepModel(1.0, gradient_bytes, 0.0, int(run_s))
    return workers(name, size, aggregation=AggregationRequest("worker"), step=step, run_s_estimate=run_s, **more)


def half_full_nodes(count: int) -> Bench:
    bench = Bench()
    bench.nodes(count)
    bench.submit(*(workers(f"old{n}", 8, run_s_estimate=1000.0) for n in range(count)))
    bench.settle()
    bench.finish(*(f"old{n}" for n in range(count)))
    bench.submit(*(workers(f"half{n}", 5, run_s_estimate=1000.0) for n in range(count)))
    bench.settle()
    return bench


def test_a_split_takes_only_what_jobs_that_fit_as_they_are_leave() -> None:
    bench = half_full_nodes(2)
    bench.submit(splittable("wide", 6), workers("narrow", 3, run_s_estimate=100.0, submitted_s=1.0))
    bench.settle(1)
    assert bench.reserved()[-1] == "narrow"
    bench.finish("narrow")
    bench.settle(1)
    assert bench.reserved()[-1] == "wide"
    assert bench.shape("wide") == [3, 3]
    bench.replay()


def test_a_job_of_lower_priority_does_not_pass_one_that_would_split() -> None:
    bench = half_full_nodes(2)
    bench.submit(splittable("wide", 6, priority=1), workers("narrow", 3, run_s_estimate=100.0))
    bench.settle(1)
    assert bench.reserved()[-1] == "wide"


def test_among_aggregated_jobs_the_one_with_less_work_goes_first() -> None:
    bench = Bench()
    bench.nodes(1)
    bench.submit(workers("old", 8))
    bench.settle()
    bench.submit(splittable("long", 8, run_s=1000.0), splittable("short", 8, run_s=10.0, submitted_s=1.0))
    bench.settle(1)
    bench.finish("old")
    bench.settle(1)
    assert bench.reserved() == ["old", "short"]


def test_much_work_is_passed_only_by_what_comes_soon_after_it() -> None:
    bench = Bench()
    bench.nodes(1)
    bench.submit(workers("old", 8))
    bench.settle()
    bench.submit(splittable("long", 8, run_s=1000.0), splittable("late", 8, run_s=10.0, submitted_s=1001.0))
    bench.settle(1)
    bench.finish("old")
    bench.settle(1)
    assert bench.reserved() == ["old", "long"]


def test_a_job_that_leaves_nothing_open_is_not_passed_by_aggregated_ones_that_came_later() -> None:
    bench = Bench()
    bench.nodes(1)
    bench.submit(workers("old", 8))
    bench.settle()
    bench.submit(workers("plain", 8, run_s_estimate=1000.0), splittable("short", 8, run_s=10.0, submitted_s=1.0))
    bench.settle(1)
    bench.finish("old")
    bench.settle(1)
    assert bench.reserved() == ["old", "plain"]


def test_the_log_of_a_simulation_with_splits_replays() -> None:
    lines: list[bytes] = []
    nodes = [NodeSpec(f"n{index}", dgx1v_wiring(), cpus=64.0) for index in range(3)]
    cluster = SimulatedCluster(nodes, Scheduler(log=DecisionLog(lines.append)))
    jobs = [
        SimulatedJob(
            splittable(
                f"j{n}",
                1 + 3 * n % 8,
                run_s=20.0 + n % 3 * 40,
                gradient_bytes=n % 2 * 2_000_000_000,
                submitted_s=float(n),
            )
        )
        for n in range(60)
    ]
    report = cluster.run(jobs)
    assert all(record.ended_s is not None for record in report.jobs.values())
    assert any(record.nodes > 1 for record in report.jobs.values())
    assert replay(lines).steps == report.num_steps

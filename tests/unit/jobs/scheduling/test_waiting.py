"""Those who wait: plans that backfill never delays, victims that are as few as can be, explanations, replay."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from millpond.base.errors import RequestError
from millpond.jobs.scheduling.log import ReplayError, replay
from millpond.jobs.scheduling.turn import SchedulerLimits
from millpond.jobs.scheduling.types import JobStatus, StartEdge, Submitted
from tests.support.gangs import Bench, gang, role, workers


def test_a_short_job_slips_in_before_a_plan_and_a_long_one_does_not() -> None:
    bench = Bench()
    bench.nodes(1)
    bench.submit(workers("old", 6, run_s_estimate=100.0))
    bench.settle()
    bench.submit(workers("big", 8, run_s_estimate=10.0))
    bench.settle(1)
    bench.submit(workers("long", 2, run_s_estimate=1000.0), workers("unknown", 1))
    bench.submit(workers("short", 2, run_s_estimate=50.0))
    bench.settle(1)
    assert bench.reserved() == ["old", "short"]
    bench.finish("short")
    bench.finish("old")
    bench.settle(60)
    assert bench.reserved()[2] == "big"


@settings(max_examples=30, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(st.lists(st.tuples(st.integers(1, 8), st.integers(1, 15), st.integers(0, 10)), min_size=2, max_size=9))
def test_backfill_never_delays_the_start_that_was_promised(jobs: list[tuple[int, int, int]]) -> None:
    bench = Bench(SchedulerLimits(may_preempt=False))
    bench.nodes(1)
    ends: dict[str, float] = {}
    promised: dict[str, float] = {}
    waiting = [(float(at), number, size, float(run)) for number, (size, run, at) in enumerate(jobs)]
    waiting.sort()
    for _ in range(150):
        while waiting and waiting[0][0] <= bench.now_s:
            at, number, size, run = waiting.pop(0)
            bench.submit(workers(f"j{number}", size, run_s_estimate=run, submitted_s=at))
        bench.finish(*[name for name, end_s in ends.items() if end_s <= bench.now_s and name in _running(bench)])
        bench.settle()
        for name, state in bench.scheduler.state.jobs.items():
            if state.started_s is not None:
                ends.setdefault(name, state.started_s + (state.request.run_s_estimate or 0))
                assert state.started_s <= promised.get(name, state.started_s)
            elif state.plan is not None and state.plan.start_s < float("inf"):
                promised.setdefault(name, state.plan.start_s)
        bench.now_s += 1
    assert all(bench.status(f"j{number}") is JobStatus.FINISHED for number in range(len(jobs)))


def _running(bench: Bench) -> list[str]:
    return [name for name, state in bench.scheduler.state.jobs.items() if state.status is JobStatus.RUNNING]


@settings(max_examples=60, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(
    st.lists(st.tuples(st.integers(1, 4), st.integers(0, 2), st.integers(0, 50)), min_size=1, max_size=7),
    st.integers(1, 8),
)
def test_victims_are_as_few_as_brute_force_finds(old: list[tuple[int, int, int]], need: int) -> None:
    bench = Bench()
    bench.nodes(1)
    for number, (size, priority, age) in enumerate(old):
        bench.submit(workers(f"old{number}", size, priority=priority, submitted_s=float(age)))
        bench.settle(age)
    running = {name: bench.job(name) for name in _running(bench)}
    free = 8 - sum(int(job.charge["devices"]) for job in running.values())
    bench.decisions.clear()
    bench.submit(workers("new", need, priority=2))
    bench.settle(1)
    evictable = [name for name, job in running.items() if job.request.priority < 2]
    sizes = {name: old[int(name[3:])][0] for name in evictable}
    fewest: dict[int, int] = {}
    for count in range(len(evictable) + 1):
        for chosen in combinations(evictable, count):
            if free + sum(sizes[name] for name in chosen) >= need:
                worst = max((running[name].request.priority for name in chosen), default=-1)
                fewest[worst] = min(fewest.get(worst, 99), count)
    evicted = bench.evicted()
    if not fewest:
        assert evicted == []
        return
    assert len(evicted) == fewest[min(fewest)], (old, need, evicted)
    assert bench.status("new") is JobStatus.RUNNING


def test_a_job_that_may_not_be_preempted_is_not() -> None:
    bench = Bench()
    bench.nodes(1)
    bench.submit(workers("rock", 8, preemptible=False))
    bench.settle()
    bench.submit(workers("high", 8, priority=9))
    bench.settle()
    assert bench.evicted() == []


def test_spot_jobs_leave_first() -> None:
    bench = Bench()
    bench.nodes(1)
    bench.submit(workers("low", 4), workers("spot", 4, spot=True, priority=7))
    bench.settle()
    bench.submit(workers("high", 4, priority=5))
    bench.settle()
    assert bench.evicted() == ["spot"]


def test_the_youngest_of_equal_victims_leaves() -> None:
    bench = Bench()
    bench.nodes(1)
    for number in range(2):
        bench.submit(workers(f"low{number}", 4))
        bench.settle(100)
    bench.submit(workers("high", 4, priority=5))
    bench.settle(1)
    assert bench.evicted() == ["low1"]


def test_an_explanation_names_who_holds_what_and_until_when() -> None:
    bench = Bench()
    bench.nodes(1)
    bench.submit(workers("old", 6, run_s_estimate=100.0))
    bench.settle()
    bench.submit(workers("first", 4), workers("second", 8))
    bench.settle()
    first = bench.scheduler.explain("first", bench.now_s)
    assert first is not None
    assert (first.position, first.holders, first.estimated_start_s) == (1, ("old",), 100.0)
    assert first.shortages[0].kind == "devices"
    assert "room for 2" in first.message
    second = bench.scheduler.explain("second", bench.now_s)
    assert second is not None
    assert second.position == 2
    assert bench.scheduler.explain("nobody", 0.0) is None


@pytest.mark.parametrize(
    ("request_", "kind"),
    [
        (workers("x", 1, 9), "devices"),
        (gang("x", role("w", 1, 1, device_type="H100")), "devices"),
        (gang("x", role("w", 1, 1, cpus=1000.0)), "cpus"),
        (gang("x", role("w", 1, 1), selector=(("zone", "a"),)), "selector"),
    ],
)
def test_what_never_fits_says_so(request_: object, kind: str) -> None:
    bench = Bench()
    bench.nodes(1)
    bench.tell(Submitted(request_))  # type: ignore[arg-type]
    bench.settle()
    answer = bench.scheduler.explain("x", 0.0)
    assert answer is not None
    assert answer.message.startswith("It does not fit")
    assert answer.shortages[0].kind == kind


def test_a_cycle_in_the_start_order_is_refused_and_nothing_is_kept() -> None:
    bench = Bench()
    with pytest.raises(RequestError, match="cycle through a, b"):
        bench.submit(gang("x", role("a", 1, after="b"), role("b", 1, after="a")))
    assert "x" not in bench.scheduler.state.jobs


def test_a_missing_upstream_role_counts_as_ready() -> None:
    bench = Bench()
    bench.nodes(1)
    lone = role("worker", 1, 1)
    bench.submit(gang("x", type(lone)("worker", 1, lone.resources, after=(StartEdge("master"),))))
    bench.settle()
    assert bench.status("x") is JobStatus.RUNNING


def test_a_log_that_was_changed_does_not_replay() -> None:
    bench = Bench()
    bench.nodes(1)
    bench.submit(workers("a", 2))
    bench.settle()
    bench.replay()
    changed = [line.replace(b'"epoch":1,"placements"', b'"epoch":2,"placements"') for line in bench.lines]
    with pytest.raises(ReplayError, match="the log says"):
        replay(changed)
    with pytest.raises(ReplayError, match="Line 1"):
        replay([b"{broken"])


@settings(max_examples=60, deadline=None, phases=[Phase.explicit, Phase.generate])
@given(
    st.lists(st.tuples(st.one_of(st.none(), st.integers(1, 50)), st.integers(0, 20)), min_size=1, max_size=8),
    st.integers(20, 60),
    st.integers(1, 8),
)
def test_a_promise_is_the_first_time_at_which_enough_should_have_ended(
    jobs: list[tuple[int | None, int]], now_s: int, need: int
) -> None:
    bench = Bench(SchedulerLimits(may_preempt=False))
    bench.nodes(1)
    for number, (run, at) in sorted(enumerate(jobs), key=lambda entry: entry[1][1]):
        bench.now_s = float(at)
        bench.submit(workers(f"j{number}", 1, run_s_estimate=None if run is None else float(run)))
        bench.settle()
    bench.now_s = float(now_s)
    missing = need - (8 - len(jobs))
    bench.submit(workers("big", need))
    bench.settle()
    known = bench.scheduler.state.jobs
    plan, begun = known["big"].plan, [known[f"j{number}"].started_s for number in range(len(jobs))]
    ends = sorted(
        max((start or 0.0) + run, now_s + 0.1 * run) if run is not None else float("inf")
        for start, (run, _) in zip(begun, jobs, strict=True)
    )
    if missing <= 0:
        assert bench.status("big") is JobStatus.RUNNING
    else:
        assert plan is not None
        assert plan.start_s == pytest.approx(ends[missing - 1])

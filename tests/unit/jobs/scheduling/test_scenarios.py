"""The scenarios that other schedulers got wrong, with the issue each comes from."""

from __future__ import annotations

import pytest

from millpond.api.topology import dgx1v_wiring
from millpond.jobs.scheduling.scheduler import Scheduler
from millpond.jobs.scheduling.types import (
    AggregationRequest,
    Cancelled,
    Evicted,
    Expire,
    Finished,
    JobStatus,
    NodeCordoned,
    NodeJoined,
    NodeLost,
    NodeSpec,
    Release,
    Reserve,
    Restored,
    Started,
    StepModel,
    Submitted,
)
from tests.support.gangs import Bench, gang, role, workers


def test_two_ps_worker_jobs_on_a_cluster_for_one_and_a_half_run_one_whole() -> None:
    bench = Bench()
    bench.small_nodes(1, 6, cpus=6.0)
    for name in "AB":
        bench.submit(gang(name, role("ps", 2, cpus=1.0), role("worker", 4, 1, after="ps")))
    bench.settle()
    assert [bench.status(name) for name in "AB"] == [JobStatus.RUNNING, JobStatus.PENDING]
    assert not bench.job("B").grains
    bench.finish("A")
    bench.settle(1)
    assert bench.status("B") is JobStatus.RUNNING
    bench.replay()


def test_mpi_workers_and_launcher_start_in_order_within_one_reservation() -> None:
    bench = Bench()
    bench.small_nodes(2, 1, cpus=2.0)
    bench.submit(gang("mpi", role("launcher", 1, cpus=1.0, after="worker"), role("worker", 2, 1)))
    made = bench.step()
    assert [type(decision) for decision in made] == [Reserve, Release]
    assert bench.step(5) == []
    bench.tell(Started("mpi", 1, "worker"))
    assert bench.step() == [Release("mpi", 1, "launcher")]
    bench.tell(Started("mpi", 1, "launcher"))
    assert bench.status("mpi") is JobStatus.RUNNING


def test_roles_of_two_jobs_that_come_interleaved_never_hold_and_wait() -> None:
    # koordinator 872: groups A, B of one job and C, D of another, in the order A C B D.
    bench = Bench()
    bench.small_nodes(1, 4)
    bench.submit(
        gang("one", role("a", 2, 1), role("b", 2, 1, after="a")),
        gang("two", role("c", 2, 1), role("d", 2, 1, after="c")),
    )
    bench.settle()
    assert bench.reserved() == ["one"]
    bench.finish("one")
    bench.settle()
    assert bench.reserved() == ["one", "two"]


def test_the_victims_of_a_job_for_a_whole_node_sit_together() -> None:
    # kueue 5243: four nodes of eight; high and low singles fill them before a high job of eight comes.
    bench = Bench()
    bench.nodes(4)
    bench.submit(*(workers(f"high{n}", 1, priority=10, submitted_s=n) for n in range(24)))
    bench.settle()
    bench.submit(*(workers(f"low{n}", 1, priority=0, submitted_s=100 + n) for n in range(8)))
    bench.settle()
    assert [len(bench.scheduler.state.on_node[n]) for n in range(4)] == [8, 8, 8, 8]
    bench.submit(gang("big", role("worker", 1, 8), priority=5))
    bench.settle()
    # Kueue had six high ones on every node. Best fit packs them, so a node holds the low ones alone: exactly those go.
    assert sorted(bench.evicted()) == [f"low{n}" for n in range(8)]


def test_high_singles_on_every_node_protect_it_from_useless_evictions() -> None:
    bench = Bench()
    bench.nodes(4)
    for node in range(4):
        for other in range(4):
            bench.tell(NodeCordoned(f"n{other}", other != node))
        bench.submit(*(workers(f"high{node}-{n}", 1, priority=10) for n in range(6)))
        bench.submit(*(workers(f"low{node}-{n}", 1, priority=0) for n in range(2)))
        bench.settle()
    for node in range(4):
        bench.tell(NodeCordoned(f"n{node}", False))
    bench.submit(gang("big", role("worker", 1, 8), priority=10))
    bench.settle()
    assert bench.evicted() == []
    assert bench.status("big") is JobStatus.PENDING


def test_a_head_that_never_fits_does_not_block_reclaim() -> None:
    # kueue 6929
    bench = Bench()
    bench.small_nodes(1, 4)
    bench.tenant("owner", 4)
    bench.tenant("guest", 0)
    bench.submit(*(workers(f"guest{n}", 1, tenant="guest") for n in range(4)))
    bench.settle()
    bench.submit(workers("never", 1, 9, tenant="owner", priority=9), workers("mine", 2, tenant="owner"))
    bench.settle(1)
    assert bench.status("mine") is JobStatus.RUNNING
    assert len(bench.evicted()) == 2


def test_the_slot_of_a_drained_node_is_not_stolen_from_a_gang() -> None:
    # volcano 5805
    bench = Bench()
    bench.small_nodes(2, 2)
    bench.submit(workers("gang", 4))
    bench.step()
    bench.tell(NodeCordoned("n1"))
    bench.submit(workers("thief", 1, priority=0))
    bench.settle()
    bench.tell(Started("gang", 1, "worker"))
    assert bench.status("gang") is JobStatus.RUNNING
    assert bench.status("thief") is JobStatus.PENDING


def test_a_gang_is_evicted_whole_in_spite_of_its_least_size() -> None:
    # volcano 4643
    bench = Bench()
    bench.small_nodes(1, 4)
    bench.submit(gang("low", role("worker", 4, 1, min_replicas=4)))
    bench.settle()
    bench.submit(workers("high", 1, priority=5))
    bench.settle(1)
    assert bench.evicted() == ["low"]
    assert bench.status("high") is JobStatus.RUNNING
    assert bench.status("low") is JobStatus.PENDING


def test_two_jobs_of_one_step_do_not_both_take_the_last_quota() -> None:
    bench = Bench()
    bench.small_nodes(1, 8)
    bench.tenant("team", 4, maximum={"devices": 4.0})
    bench.submit(workers("a", 3), workers("b", 3))
    bench.step()
    assert bench.reserved() == ["a"]
    assert bench.scheduler.explain("b", 0.0).shortages[0].kind == "quota"  # type: ignore[union-attr]


def test_a_finished_gang_counts_no_more() -> None:
    # volcano 2633
    bench = Bench()
    bench.small_nodes(1, 4)
    bench.tenant("team", 4, maximum={"devices": 4.0})
    bench.submit(workers("a", 4))
    bench.settle()
    bench.finish("a")
    bench.finish("a")  # twice: a repeated event
    bench.submit(workers("b", 4))
    bench.settle()
    assert bench.status("b") is JobStatus.RUNNING


def test_a_restart_in_the_middle_of_a_reservation_goes_on_with_it() -> None:
    bench = Bench()
    bench.small_nodes(1, 4, cpus=4.0)
    request = gang("job", role("ps", 1, cpus=1.0), role("worker", 4, 1, after="ps"))
    bench.submit(request)
    made = bench.step()
    reserve = made[0]
    assert isinstance(reserve, Reserve)
    again = Bench()
    again.small_nodes(1, 4, cpus=4.0)
    again.tell(Restored(request, 1, reserve.placements, reserve.expires_s, frozenset({"ps"})))
    again.submit(request, workers("other", 1))
    assert again.step() == []  # not started twice, nothing stolen
    again.tell(Started("job", 1, "ps"))
    assert again.step() == [Release("job", 1, "worker")]
    again.replay()


def test_a_node_lost_while_reserved_voids_the_whole_reservation() -> None:
    bench = Bench()
    bench.small_nodes(2, 2)
    bench.submit(workers("job", 4))
    bench.step()
    bench.tell(NodeLost("n1"))
    assert bench.step() == [Expire("job", 1, "node_lost", True)]
    bench.tell(Evicted("job", 1))
    assert bench.status("job") is JobStatus.PENDING
    assert not bench.job("job").grains
    bench.tell(NodeJoined(NodeSpec("n1", bench.scheduler.state.cells.nodes[0].spec.wiring, cpus=64.0)))
    bench.settle()
    assert bench.job("job").epoch == 2
    assert bench.status("job") is JobStatus.RUNNING


def occupied(bench: Bench, taken: list[int], run_s: float) -> None:
    """Fills devices of each node with jobs that end at `run_s`."""
    count = len(bench.scheduler.state.cells.nodes)
    for node, devices in enumerate(taken):
        for other in range(count):
            bench.tell(NodeCordoned(f"n{other}", other != node))
        if devices:
            bench.submit(gang(f"old{node}", role("worker", 1, devices), run_s_estimate=run_s))
        bench.settle()
    for other in range(count):
        bench.tell(NodeCordoned(f"n{other}", False))
    bench.settle()


STEP = StepModel(compute_s=0.2, gradient_bytes=500_000_000, overlap=0.5, num_steps=1000)


@pytest.mark.parametrize(
    ("taken", "run_s", "shape"),
    [
        ([0, 0], 1e6, [8]),
        ([4, 4], 1e6, [4, 4]),
        ([1, 7], 1e6, [7, 1]),
        ([5, 3], 1e6, [3, 5]),
    ],
)
def test_eight_single_workers_run_in_whatever_shape_is_free(taken: list[int], run_s: float, shape: list[int]) -> None:
    bench = Bench()
    bench.nodes(2)
    occupied(bench, taken, run_s)
    bench.submit(workers("job", 8, aggregation=AggregationRequest("worker"), step=STEP))
    bench.settle()
    assert bench.shape("job") == shape
    placed = bench.job("job").placement
    assert placed is not None
    groups = placed.roles["worker"]
    assert [group.num_ranks for group in groups] == shape
    assert [group.rank for group in groups] == [0, shape[0]][: len(shape)]


def test_an_aggregated_job_waits_when_a_whole_node_is_free_soon() -> None:
    bench = Bench()
    bench.nodes(2)
    occupied(bench, [4, 4], 20.0)
    slow = StepModel(compute_s=0.05, gradient_bytes=2_000_000_000, overlap=0.0, num_steps=10_000)
    bench.submit(workers("job", 8, aggregation=AggregationRequest("worker"), step=slow))
    bench.settle()
    assert bench.status("job") is JobStatus.PENDING
    assert bench.scheduler.explain("job", bench.now_s).shortages[0].kind == "links"  # type: ignore[union-attr]
    bench.finish("old0")
    bench.settle(20)
    assert bench.shape("job") == [8]


def test_a_cancelled_job_gives_its_cells_back_only_when_its_processes_are_gone() -> None:
    bench = Bench()
    bench.small_nodes(1, 1)
    bench.submit(workers("a", 1), workers("b", 1))
    bench.settle()
    bench.tell(Cancelled("a"))
    assert bench.step() == [Expire("a", 1, "cancelled", True)]
    assert bench.status("b") is JobStatus.PENDING
    bench.tell(Evicted("a", 1))
    bench.settle()
    assert bench.status("a") is JobStatus.FINISHED
    assert bench.status("b") is JobStatus.RUNNING


def test_repeated_and_late_events_change_nothing() -> None:
    bench = Bench()
    bench.small_nodes(1, 2)
    request = workers("a", 2)
    bench.submit(request, request)
    bench.settle()
    bench.tell(Started("a", 1, "worker"))
    bench.tell(Finished("a", 0))  # an epoch that is over
    bench.tell(Evicted("a", 1))  # it was not asked to leave
    bench.tell(Finished("unknown", 1))
    bench.tell(NodeLost("unknown"))
    assert bench.reserved() == ["a"]
    assert bench.status("a") is JobStatus.RUNNING


def test_a_reservation_that_never_starts_expires_and_the_job_waits_again() -> None:
    bench = Bench()
    bench.small_nodes(1, 2)
    bench.submit(workers("slow", 2, start_timeout_s=10.0), workers("next", 2, submitted_s=1.0))
    bench.step()
    assert bench.step(9) == []
    made = bench.step(1)
    assert made[0] == Expire("slow", 1, "start_timeout", True)
    bench.tell(Evicted("slow", 1))
    assert bench.scheduler.state.holding == {}


def test_a_scheduler_without_tenants_allows_everything() -> None:
    scheduler = Scheduler()
    scheduler.apply(NodeJoined(NodeSpec("n", dgx1v_wiring())), 0)
    scheduler.apply(Submitted(workers("job", 8)), 0)
    assert isinstance(scheduler.step(0)[0], Reserve)

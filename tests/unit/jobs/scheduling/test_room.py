"""Where a gang may stand: machines wired differently, types its tenant may not have, and whose turn frees room."""

from __future__ import annotations

from millpond.api.topology import dgx1v_wiring, plain_wiring
from millpond.jobs.scheduling.turn import SchedulerLimits
from millpond.jobs.scheduling.types import Evicted, JobStatus, NodeJoined, NodeSpec, Preempt, TenantChanged, TenantSpec
from tests.support.gangs import Bench, gang, role, workers


def test_a_gang_stands_on_machines_of_one_type_that_are_wired_differently_when_no_kind_has_room() -> None:
    bench = Bench()
    for name, wiring in (("a", dgx1v_wiring()), ("b", plain_wiring(8)), ("c", plain_wiring(4))):
        bench.tell(NodeJoined(NodeSpec(name, wiring, "V100", 64.0)))
    bench.submit(gang("job", role("worker", 2, 8, device_type="V100")))
    bench.settle()
    placement = bench.job("job").placement
    assert placement is not None
    assert [(p.node, len(p.device_ids)) for p in placement.roles["worker"]] == [("a", 8), ("b", 8)]


def test_a_job_of_any_type_takes_one_that_its_tenant_may_have() -> None:
    bench = Bench()
    bench.tell(NodeJoined(NodeSpec("fast", dgx1v_wiring(), "V100", 64.0)))
    bench.tell(NodeJoined(NodeSpec("slow", plain_wiring(8), "T4", 64.0)))
    bench.tell(TenantChanged(TenantSpec("team", maximum={"devices/V100": 2.0})))
    bench.submit(workers("many", 4), workers("few", 2))
    bench.settle()
    nodes = {name: bench.job(name).placement.roles["worker"][0].node for name in ("many", "few")}  # type: ignore[union-attr]
    assert nodes == {"many": "slow", "few": "fast"}


def test_a_refused_job_does_not_hide_one_of_higher_priority_with_the_same_shape() -> None:
    bench = Bench(SchedulerLimits(plan_depth=0))
    bench.small_nodes(1, 4)
    bench.submit(workers("old", 4, priority=1))
    bench.settle()
    bench.submit(workers("same", 2, priority=1))
    bench.settle()
    assert bench.status("same") is JobStatus.PENDING
    bench.submit(workers("high", 2, priority=2))
    made = bench.step()
    assert made == [Preempt(("old",), (1,), "high")]


def test_a_job_that_can_evict_nobody_does_not_use_up_the_search_of_those_behind_it() -> None:
    bench = Bench()
    bench.small_nodes(1, 4)
    bench.submit(workers("guest", 4, priority=0))
    bench.settle()
    bench.submit(workers("never", 1, 9, priority=9), workers("high", 2, priority=5))
    bench.step()
    bench.step()
    assert bench.evicted() == ["guest"]


def test_what_is_emptied_for_a_job_goes_to_one_of_higher_priority_of_its_own_tenant_only() -> None:
    bench = Bench()
    bench.small_nodes(1, 4)
    bench.tenant("owner", 4)
    bench.tenant("guest", 0)
    bench.submit(workers("old", 4, tenant="guest", priority=9))
    bench.settle()
    bench.submit(workers("mine", 4, tenant="owner"))
    bench.step()
    assert bench.evicted() == ["old"]
    bench.submit(workers("theirs", 4, tenant="guest", priority=9))  # as high as the victim: it may not come back
    bench.tell(Evicted("old", 1))
    bench.settle()
    assert bench.status("mine") is JobStatus.RUNNING
    assert bench.status("theirs") is JobStatus.PENDING

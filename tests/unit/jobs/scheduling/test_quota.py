"""The tree of tenants: maxima, borrowing, lending, reclaim, shares."""

from __future__ import annotations

from millpond.jobs.scheduling.types import JobStatus, Preempt, Reclaim
from tests.support.gangs import Bench, gang, role, workers


def test_a_parent_limits_the_sum_of_its_children() -> None:
    bench = Bench()
    bench.nodes(1)
    bench.tenant("org", maximum={"devices": 4.0})
    bench.tenant("a", parent="org")
    bench.tenant("b", parent="org")
    bench.submit(workers("one", 3, tenant="a"), workers("two", 2, tenant="b"), workers("three", 1, tenant="b"))
    bench.settle()
    assert bench.reserved() == ["one"]  # "three" would fit, and would delay "two", which came before it
    bench.finish("one")
    bench.settle()
    assert bench.reserved() == ["one", "two", "three"]


def test_a_tenant_borrows_what_others_leave_and_gives_it_back() -> None:
    bench = Bench()
    bench.nodes(1)
    bench.tenant("owner", 4)
    bench.tenant("guest", 4)
    bench.submit(*(workers(f"g{n}", 2, tenant="guest", priority=5, submitted_s=n) for n in range(4)))
    bench.settle()
    assert len(bench.reserved()) == 4
    bench.submit(workers("mine", 4, tenant="owner"))
    made = bench.settle(60)
    assert [type(decision) for decision in made if isinstance(decision, Preempt | Reclaim)] == [Reclaim]
    assert len(bench.evicted()) == 2
    assert bench.status("mine") is JobStatus.RUNNING


def test_a_guarantee_is_never_reclaimed() -> None:
    bench = Bench()
    bench.nodes(1)
    bench.tenant("owner", 4)
    bench.tenant("other", 4)
    bench.submit(workers("theirs", 4, tenant="other"), workers("mine", 4, tenant="owner"))
    bench.settle()
    bench.submit(workers("more", 2, tenant="owner", priority=9))
    bench.settle()
    assert bench.evicted() in ([], ["mine"])
    assert bench.status("theirs") is JobStatus.RUNNING


def test_a_tenant_that_may_not_borrow_stays_inside_its_guarantee() -> None:
    bench = Bench()
    bench.nodes(1)
    bench.tenant("fixed", 2, can_borrow=False)
    bench.submit(workers("a", 2, tenant="fixed"), workers("b", 1, tenant="fixed"))
    bench.settle()
    assert bench.reserved() == ["a"]


def test_what_a_tenant_does_not_lend_stays_free() -> None:
    bench = Bench()
    bench.nodes(1)
    bench.tenant("keeper", 3, can_lend=False)
    bench.tenant("other", 0)
    bench.submit(workers("a", 5, tenant="other"), workers("b", 1, tenant="other"))
    bench.settle()
    assert bench.reserved() == ["a"]
    bench.submit(workers("c", 3, tenant="keeper"))
    bench.settle()
    assert bench.reserved() == ["a", "c"]


def test_the_tenant_with_the_smaller_share_comes_first() -> None:
    bench = Bench()
    bench.nodes(1)
    bench.tenant("heavy", weight=3.0)
    bench.tenant("light", weight=1.0)
    for number in range(8):
        bench.submit(workers(f"h{number}", 1, tenant="heavy"), workers(f"l{number}", 1, tenant="light"))
    bench.step()
    held = [name[0] for name in bench.reserved()]
    assert (held.count("h"), held.count("l")) == (6, 2)


def test_higher_priority_comes_first_and_equal_priority_in_order_of_submission() -> None:
    bench = Bench()
    bench.nodes(1)
    bench.submit(workers("late", 4, submitted_s=2.0), workers("early", 4, submitted_s=1.0))
    bench.submit(workers("urgent", 4, priority=1, submitted_s=3.0))
    bench.step()
    assert bench.reserved() == ["urgent", "early"]


def test_an_unknown_tenant_waits_until_it_exists() -> None:
    bench = Bench()
    bench.nodes(1)
    bench.tenant("known")
    bench.submit(workers("job", 1, tenant="new"))
    bench.settle()
    assert bench.status("job") is JobStatus.PENDING
    bench.tenant("new")
    bench.settle()
    assert bench.status("job") is JobStatus.RUNNING


def test_a_job_of_any_type_is_charged_for_the_type_it_got() -> None:
    bench = Bench()
    bench.small_nodes(1, 4, device_type="A")
    bench.tenant("team", maximum={"devices/A": 2.0})
    bench.submit(workers("big", 3), gang("small", role("worker", 2, 1)))
    bench.settle()
    assert bench.reserved() == ["small"]


def test_an_elastic_job_shrinks_to_its_quota() -> None:
    bench = Bench()
    bench.nodes(1)
    bench.tenant("team", maximum={"devices": 3.0})
    bench.submit(gang("elastic", role("worker", 8, 1, min_replicas=2)))
    bench.settle()
    assert bench.shape("elastic") == [3]


def test_what_a_sibling_holds_counts_in_the_turn_at_once() -> None:
    bench = Bench()
    bench.nodes(1)
    for name, parent in (("one", None), ("red", "one"), ("blue", "one"), ("two", None), ("green", "two")):
        bench.tenant(name, parent=parent)
    bench.submit(workers("b", 8, tenant="blue"))
    bench.submit(workers("r", 8, tenant="red"), workers("g", 8, tenant="green"))
    assert bench.scheduler.queue.order() == ["b", "r", "g"]
    bench.settle()
    assert bench.reserved() == ["b"]
    assert bench.scheduler.queue.order() == ["g", "r"]  # all that is held counts for the parent of red and blue
    bench.finish("b")
    assert bench.scheduler.queue.order() == ["r", "g"]


def test_what_is_kept_for_a_job_does_not_stand_in_its_own_way_behind_its_equals() -> None:
    bench = Bench()
    bench.nodes(1)
    bench.tenant("team", maximum={"devices": 6.0})
    bench.submit(workers("old", 6))
    bench.settle()
    bench.submit(workers("promised", 4, submitted_s=10.0))
    bench.settle(10)
    bench.submit(workers("before", 4, submitted_s=5.0))  # came back from an earlier start, say
    bench.settle(1)
    bench.finish("old")
    bench.settle(1)
    assert bench.reserved() == ["old", "promised"]
    bench.finish("promised")
    bench.settle(1)
    assert bench.reserved() == ["old", "promised", "before"]


def test_promises_that_quotas_no_longer_allow_together_do_not_wait_for_each_other() -> None:
    bench = Bench()
    bench.nodes(2)
    bench.tenant("org", maximum={"devices": 16.0})
    bench.tenant("a", parent="org")
    bench.tenant("b", parent="org")
    bench.submit(workers("old", 16, tenant="a", preemptible=False))
    bench.settle()
    bench.submit(workers("one", 6, tenant="a"), workers("two", 6, tenant="b"))
    for _ in range(3):
        bench.settle(1)
    bench.tenant("org", maximum={"devices": 8.0})
    bench.finish("old")
    bench.settle(1)
    assert bench.reserved() == ["old", "two"]
    bench.finish("two")
    bench.settle(1)
    assert bench.reserved() == ["old", "two", "one"]

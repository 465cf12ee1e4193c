from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millpond.api.deployment import RolloutSpec, ServerPhase
from millpond.jobs.deployments.plan import Aim, Server, plan

READY, STARTING, DRAINING, ENDED = (
    ServerPhase.READY, ServerPhase.STARTING, ServerPhase.DRAINING, ServerPhase.ENDED,
)  # fmt: skip


def servers(*phases: tuple[int, ServerPhase]) -> list[Server]:
    return [Server(f"s{i}", revision, phase, float(i), 0.0) for i, (revision, phase) in enumerate(phases)]


def test_a_new_version_is_started_whole() -> None:
    assert plan(Aim(3, 1, RolloutSpec()), [], 0.0).starts == 3


def test_one_more_than_asked_for_is_started_before_an_old_one_goes() -> None:
    steps = plan(Aim(2, 2, RolloutSpec()), servers((1, READY), (1, READY)), 0.0)
    assert (steps.starts, steps.drains) == (1, ())
    steps = plan(Aim(2, 2, RolloutSpec()), servers((1, READY), (1, READY), (2, READY)), 0.0)
    assert (steps.starts, len(steps.drains)) == (0, 1)


def test_without_room_for_more_an_old_one_goes_first() -> None:
    rollout = RolloutSpec(max_surge=0, max_unavailable=1)
    assert len(plan(Aim(2, 2, rollout), servers((1, READY), (1, READY)), 0.0).drains) == 1
    assert plan(Aim(2, 2, rollout), servers((1, READY)), 0.0).starts == 1
    assert RolloutSpec(max_surge=0, max_unavailable=0).unavailable_of(3) == 1


def test_what_serves_nothing_leaves_at_once() -> None:
    steps = plan(Aim(2, 2, RolloutSpec()), servers((1, READY), (1, STARTING), (2, STARTING)), 0.0)
    assert steps.drains == ("s1",)


def test_the_least_busy_leave_first() -> None:
    busy = Server("busy", 1, READY, 0.0, 0.0, in_flight=3)
    idle = Server("idle", 1, READY, 0.0, 0.0)
    assert plan(Aim(1, 1, RolloutSpec()), [busy, idle], 0.0).drains == ("idle",)


def test_a_replica_is_stopped_when_it_is_done_or_its_time_is_over() -> None:
    leaving = Server("s", 1, DRAINING, 0.0, since_s=100.0, in_flight=1)
    aim = Aim(0, 1, RolloutSpec(drain_s=30))
    assert plan(aim, [leaving], 129.0).stops == ()
    assert plan(aim, [leaving], 130.0).stops == ("s",)
    assert plan(aim, [Server("s", 1, DRAINING, 0.0, 100.0)], 100.0).stops == ("s",)


def test_starts_that_fail_come_less_and_less_often() -> None:
    waits = [Aim(1, 1, RolloutSpec(), failures, 100.0).next_start_s - 100.0 for failures in range(1, 9)]
    assert waits == [0.5, 1, 2, 4, 8, 16, 30, 30]
    aim = Aim(1, 1, RolloutSpec(), failures=3, failed_s=100.0)
    assert (plan(aim, [], 101.9).starts, plan(aim, [], 102.0).starts) == (0, 1)


@pytest.mark.parametrize(("asked", "replicas", "surge", "missing"), [("25%", 10, 3, 2), ("25%", 1, 1, 0), (2, 5, 2, 2)])
def test_shares_round_as_kubernetes_has_them(asked: int | str, replicas: int, surge: int, missing: int) -> None:
    rollout = RolloutSpec(asked, asked)
    assert (rollout.surge_of(replicas), rollout.unavailable_of(replicas)) == (surge, missing)


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 6), st.integers(0, 3), st.integers(0, 3), st.integers(0, 6), st.randoms(use_true_random=False)
)
def test_every_rollout_ends_and_keeps_its_bounds(
    desired: int, surge: int, missing: int, before: int, chance: random.Random
) -> None:
    """From any number of old replicas, with starts that become ready in any order, and requests of any length."""
    rollout = RolloutSpec(surge, missing, drain_s=5.0)
    uids = (f"n{i}" for i in itertools.count())
    fleet = {f"o{i}": Server(f"o{i}", 1, READY, float(i), 0.0) for i in range(before)}
    floor = min(before, desired) - rollout.unavailable_of(desired)
    for now_s in range(200):
        steps = plan(Aim(desired, 2, rollout), list(fleet.values()), float(now_s))
        for uid in steps.stops:
            del fleet[uid]
        for uid in steps.drains:
            old = fleet[uid]
            fleet[uid] = Server(uid, old.revision, DRAINING, old.created_s, float(now_s), chance.randrange(2))
        for _ in range(steps.starts):
            uid = next(uids)
            fleet[uid] = Server(uid, 2, STARTING, float(now_s), float(now_s))
        staying = [server for server in fleet.values() if server.phase is not DRAINING]
        assert len(staying) <= max(before, desired + rollout.surge_of(desired))
        assert sum(server.phase is READY for server in staying) >= floor
        for server in list(fleet.values()):
            if server.phase is STARTING and chance.random() < 0.4:
                fleet[server.uid] = Server(server.uid, 2, READY, server.created_s, float(now_s))
    assert [(server.revision, server.phase) for server in fleet.values()] == [(2, READY)] * desired

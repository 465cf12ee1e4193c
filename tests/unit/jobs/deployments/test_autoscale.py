from __future__ import annotations

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from millpond.api.deployment import AutoscaleSpec
from millpond.jobs.deployments.autoscale import Autoscaler, mean_readings, recommend

QUEUE = AutoscaleSpec(1, 10, {"queue": 4.0}, up_s=0.0, down_s=60.0)


def test_waiting_requests_are_shared_out() -> None:
    assert recommend(QUEUE, [{"queue": 8.0}, {"queue": 8.0}], 0, 2) == 4


def test_requests_that_wait_in_the_gateway_count() -> None:
    assert recommend(QUEUE, [{"queue": 4.0}], 8, 1) == 3


def test_the_target_that_needs_most_decides() -> None:
    spec = AutoscaleSpec(1, 10, {"queue": 4.0, "kv": 0.5})
    assert recommend(spec, [{"queue": 0.0, "kv": 1.0}, {"queue": 0.0, "kv": 1.0}], 0, 2) == 4


def test_small_deviations_change_nothing() -> None:
    assert recommend(QUEUE, [{"queue": 4.3}, {"queue": 4.3}], 0, 2) == 2
    assert recommend(QUEUE, [{"queue": 3.7}, {"queue": 3.7}], 0, 2) == 2


def test_limits_hold() -> None:
    assert recommend(QUEUE, [{"queue": 1e6}], 0, 1) == 10
    assert recommend(QUEUE, [{"queue": 1e308}] * 3, 0, 1) == 10
    assert recommend(AutoscaleSpec(2, 5, {"queue": 4.0}), [{"queue": 0.0}] * 3, 0, 3) == 2


def test_a_replica_that_does_not_say_is_idle_for_more_and_loaded_for_fewer() -> None:
    assert recommend(QUEUE, [{"queue": 16.0}, None], 0, 2) == 4
    assert recommend(QUEUE, [{"queue": 0.0}, None, None], 0, 3) == 2
    assert recommend(QUEUE, [None, None], 0, 2) == 2


def test_a_first_request_starts_a_first_replica() -> None:
    spec = AutoscaleSpec(0, 3, {"requests": 8.0})
    assert recommend(spec, [], 1, 0) == 1
    assert recommend(spec, [], 0, 0) == 0


def test_fewer_only_when_the_whole_window_asks_for_fewer() -> None:
    scaler = Autoscaler(4)
    seen = [
        scaler.decide(QUEUE, [{"queue": load}] * 4, 0, float(at_s))
        for at_s, load in [(0, 4.0), (10, 0.0), (59, 0.0), (61, 2.0), (75, 0.0), (122, 0.0)]
    ]
    assert seen == [4, 4, 4, 2, 2, 1]


def test_more_only_when_the_whole_window_asks_for_more() -> None:
    spec = AutoscaleSpec(1, 10, {"queue": 4.0}, up_s=30.0, down_s=30.0)
    scaler = Autoscaler(1)
    assert scaler.decide(spec, [{"queue": 2.0}], 0, 0.0) == 1
    assert scaler.decide(spec, [{"queue": 40.0}], 0, 10.0) == 1
    assert scaler.decide(spec, [{"queue": 12.0}], 0, 31.0) == 3


@settings(deadline=None)
@given(
    st.floats(0.1, 100), st.lists(st.floats(0, 1000), min_size=1, max_size=8), st.integers(0, 50), st.floats(0, 0.5)
)
def test_a_recommendation_meets_the_target_and_no_more(
    target: float, loads: list[float], waiting: int, tolerance: float
) -> None:
    spec = AutoscaleSpec(0, 100_000, {"queue": target}, tolerance=tolerance)
    count = recommend(spec, [{"queue": load} for load in loads], waiting, len(loads))
    total = sum(loads) + waiting
    if count == len(loads) and abs(total / target / count - 1) <= tolerance:
        return
    assert count == math.ceil(total / target - 1e-9)


def test_people_see_the_average_of_those_that_say() -> None:
    assert mean_readings([{"queue": 1.0}, None, {"queue": 2.0, "kv": 0.5}], {"queue": 1, "kv": 1, "x": 1}) == {
        "queue": 1.5,
        "kv": 0.5,
    }

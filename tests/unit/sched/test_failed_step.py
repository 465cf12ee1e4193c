"""A step that raised: its sequences end, nothing it wrote is ever used, and the others go on."""

from __future__ import annotations

import pytest

from tests.sim.toy_engine import ToyEngine, make_sequence


def test_sequences_of_a_failed_step_end_with_an_error_and_free_their_blocks() -> None:
    engine = ToyEngine()
    engine.add(make_sequence(0, [1] * 9, 9))
    engine.step_that_fails()
    assert engine.ends == {0: ("error", None)}
    assert engine.cache.pool.num_free == 64


def test_nothing_that_a_failed_step_wrote_can_be_found() -> None:
    engine = ToyEngine()
    engine.add(make_sequence(0, [1] * 9, 9))
    engine.step_that_fails()
    engine.add(make_sequence(1, [1] * 9, 3))
    engine.run()
    assert engine.added[1].num_cached_tokens == 0
    engine.check_outputs()


def test_what_was_computed_before_the_failure_can_be_found() -> None:
    engine = ToyEngine()
    engine.add(make_sequence(0, [1] * 9, 9))
    engine.step()
    engine.step_that_fails()
    engine.add(make_sequence(1, [1] * 9, 3))
    engine.run()
    assert engine.added[1].num_cached_tokens == 8
    engine.check_outputs()


def test_sequences_outside_the_failed_step_go_on() -> None:
    engine = ToyEngine(max_sequences=1)
    engine.add(make_sequence(0, [1], 5))
    engine.add(make_sequence(1, [2], 5))
    engine.step_that_fails()
    engine.run()
    assert engine.ends[1] == ("length", None)
    engine.check_outputs()


def test_sequence_cancelled_in_a_failed_step_ended_before() -> None:
    engine = ToyEngine()
    engine.add(make_sequence(0, [1] * 9, 9))
    plan = engine.plan()
    engine.cancel(0)
    assert engine.scheduler.abandon(plan) == ()
    assert engine.cache.pool.num_free == 64


def test_only_the_plan_in_flight_can_be_abandoned() -> None:
    engine = ToyEngine()
    engine.add(make_sequence(0, [1], 9))
    plan = engine.step()
    with pytest.raises(ValueError, match="not in flight"):
        engine.scheduler.abandon(plan)

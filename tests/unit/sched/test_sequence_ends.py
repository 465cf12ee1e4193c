"""How a sequence ends by itself: stop tokens, lengths, deadlines, and the errors that keep it from starting."""

from __future__ import annotations

import pytest

from millpond.base.errors import ConfigError, ContextLengthError, RequestError
from millpond.inference.sched import SchedulerLimits
from tests.sim.toy_engine import ToyEngine, make_sequence


def run_with_tokens(engine: ToyEngine, *sampled: int) -> None:
    """Steps with given tokens in place of the model's."""
    for token in sampled:
        plan = engine.scheduler.schedule(engine.now_s)
        tokens = {entry.seq.seq_id: token for entry in plan.entries if entry.samples}
        for seq, reason, stop_reason in engine.scheduler.complete(plan, tokens, engine.now_s).finished:
            engine.note_end(seq, reason, stop_reason)


def test_end_of_sequence_token_stops_without_a_stop_reason() -> None:
    engine = ToyEngine()
    engine.add(make_sequence(0, [1], 9, stop_token_ids=frozenset({5, 6}), eos_token_ids=(5,)))
    run_with_tokens(engine, 1, 5)
    assert engine.ends[0] == ("stop", None)
    assert engine.added[0].output_token_ids == [1, 5]


def test_stop_token_is_the_stop_reason() -> None:
    engine = ToyEngine()
    engine.add(make_sequence(0, [1], 9, stop_token_ids=frozenset({5, 6}), eos_token_ids=(5,)))
    run_with_tokens(engine, 6)
    assert engine.ends[0] == ("stop", 6)
    assert engine.added[0].stop_reason == 6


def test_ignored_end_of_sequence_token_does_not_stop() -> None:
    engine = ToyEngine()
    engine.add(make_sequence(0, [1], 2, stop_token_ids=frozenset(), eos_token_ids=(5,)))
    run_with_tokens(engine, 5, 5)
    assert engine.ends[0] == ("length", None)


def test_min_tokens_suppresses_stops() -> None:
    engine = ToyEngine()
    engine.add(make_sequence(0, [1], 9, min_tokens=3, stop_token_ids=frozenset({5})))
    run_with_tokens(engine, 5, 5)
    assert engine.ends == {}
    run_with_tokens(engine, 5)
    assert engine.ends[0] == ("stop", 5)


def test_max_tokens_ends_by_length() -> None:
    engine = ToyEngine()
    engine.add(make_sequence(0, [1], 3))
    run_with_tokens(engine, 1, 1, 1)
    assert engine.ends[0] == ("length", None)
    assert len(engine.added[0].output_token_ids) == 3


def test_stop_token_in_the_last_place_is_a_stop() -> None:
    engine = ToyEngine()
    engine.add(make_sequence(0, [1], 2, stop_token_ids=frozenset({5})))
    run_with_tokens(engine, 1, 5)
    assert engine.ends[0] == ("stop", 5)


def test_full_context_ends_by_length() -> None:
    engine = ToyEngine(max_model_len=6)
    engine.add(make_sequence(0, [1] * 4, 100))
    engine.run()
    assert engine.ends[0] == ("length", None)
    assert engine.added[0].num_tokens == 6


def test_without_output_the_prompt_is_computed_and_nothing_sampled() -> None:
    engine = ToyEngine(max_batch_tokens=8, max_model_len=20)
    engine.add(make_sequence(0, [1] * 20, 0))
    engine.run()
    assert engine.ends[0] == ("length", None)
    assert engine.executor.num_computed == 20
    assert not any(entry.samples for plan in engine.plans for entry in plan.entries)


def test_prompt_that_fills_the_context_is_refused() -> None:
    engine = ToyEngine(max_model_len=6)
    with pytest.raises(ContextLengthError, match="6 tokens"):
        engine.add(make_sequence(0, [1] * 6, 1))


def test_sequence_larger_than_the_pool_is_refused() -> None:
    engine = ToyEngine(num_blocks=2, block_size=4)
    with pytest.raises(ContextLengthError, match="KV cache"):
        engine.add(make_sequence(0, [1] * 4, 6))


def test_sequence_that_just_fits_the_pool_runs_to_its_end() -> None:
    engine = ToyEngine(num_blocks=2, block_size=4)
    engine.add(make_sequence(0, [1] * 4, 5))  # the ninth token is sampled and never computed
    engine.run()
    engine.check_outputs()


def test_empty_prompt_is_refused() -> None:
    with pytest.raises(RequestError, match="no tokens"):
        ToyEngine().add(make_sequence(0, []))


@pytest.mark.parametrize("values", [(0, 1, 1, 1), (1, 0, 1, 1), (1, 1, -1, 1), (1, 1, 1, 0)])
def test_impossible_limits_are_a_config_error(values: tuple[int, int, int, int]) -> None:
    with pytest.raises(ConfigError):
        SchedulerLimits(*values)


def test_deadline_ends_a_waiting_sequence() -> None:
    engine = ToyEngine(max_sequences=1)
    engine.add(make_sequence(0, [1], 50))
    engine.add(make_sequence(1, [1], 50, deadline_s=2.5))
    for _ in range(3):
        engine.step()
    assert 1 not in engine.ends
    plan = engine.step()
    assert [seq.seq_id for seq in plan.expired] == [1]
    assert engine.ends[1] == ("deadline", None)


def test_deadline_ends_a_running_prompt_between_its_chunks() -> None:
    engine = ToyEngine(max_batch_tokens=4)
    engine.add(make_sequence(0, [1] * 40, 5, deadline_s=3.0))
    engine.run()
    assert engine.ends[0] == ("deadline", None)
    assert engine.executor.num_computed == 12
    engine.check_outputs()


def test_deadline_that_passes_during_a_step_keeps_the_step_s_token() -> None:
    engine = ToyEngine()
    engine.add(make_sequence(0, [1], 50, deadline_s=2.0))
    engine.step()
    engine.step()
    assert engine.ends[0] == ("deadline", None)
    assert len(engine.added[0].output_token_ids) == 2


def test_last_token_beats_the_deadline() -> None:
    engine = ToyEngine()
    engine.add(make_sequence(0, [1], 1, deadline_s=1.0))
    engine.step()
    assert engine.ends[0] == ("length", None)


def test_deadlines_of_ended_sequences_are_not_kept_for_ever() -> None:
    engine = ToyEngine(max_queue=1000)
    for seq_id in range(300):
        engine.add(make_sequence(seq_id, [1], 1, deadline_s=1e9))
        engine.run()
    assert len(engine.scheduler._deadlines) < 100

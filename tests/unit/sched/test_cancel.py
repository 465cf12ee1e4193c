"""Cancelling at any moment: waiting, running, and while the executor computes the step."""

from __future__ import annotations

from tests.sim.toy_engine import ToyEngine, make_sequence


def test_cancelled_while_waiting_never_runs() -> None:
    engine = ToyEngine()
    engine.add(make_sequence(0, [1]))
    assert engine.cancel(0)
    assert not engine.scheduler.has_work
    assert engine.plan().entries == ()


def test_cancelled_between_steps_frees_its_blocks_at_once() -> None:
    engine = ToyEngine()
    engine.add(make_sequence(0, [1] * 9, 9))
    engine.step()
    assert engine.cache.pool.num_free == 61
    assert engine.cancel(0)
    assert engine.cache.pool.num_free == 64


def test_cancelled_during_its_step_keeps_its_blocks_until_the_step_is_complete() -> None:
    engine = ToyEngine()
    engine.add(make_sequence(0, [1] * 9, 9))
    plan = engine.plan()
    assert engine.cancel(0)
    assert engine.cache.pool.num_free == 61
    tokens = engine.executor.run(plan)
    result = engine.scheduler.complete(plan, tokens, 1.0)
    assert result.finished == ()
    assert engine.cache.pool.num_free == 64


def test_results_of_a_cancelled_sequence_may_be_missing() -> None:
    engine = ToyEngine()
    engine.add(make_sequence(0, [1] * 9, 9))
    plan = engine.plan()
    engine.cancel(0)
    engine.scheduler.complete(plan, {}, 1.0)
    assert engine.added[0].output_token_ids == []


def test_token_sampled_for_a_cancelled_sequence_is_dropped() -> None:
    engine = ToyEngine()
    engine.add(make_sequence(0, [1] * 9, 9))
    engine.step(meanwhile=lambda: engine.cancel(0))
    assert engine.added[0].output_token_ids == []
    assert engine.ends == {0: ("cancelled", None)}


def test_what_a_cancelled_sequence_computed_can_be_found_by_others() -> None:
    engine = ToyEngine()
    engine.add(make_sequence(0, [1] * 9, 9))
    engine.step(meanwhile=lambda: engine.cancel(0))
    engine.add(make_sequence(1, [1] * 9, 1))
    engine.run()
    assert engine.added[1].num_cached_tokens == 8


def test_running_sequence_that_is_not_in_the_step_is_freed_at_once() -> None:
    engine = ToyEngine(max_batch_tokens=4, max_sequences=4)
    engine.add(make_sequence(0, [1] * 40, 1))
    engine.step()
    engine.add(make_sequence(1, [1] * 4 + [2] * 36, 1, priority=1))
    plan = engine.plan()
    assert [entry.seq.seq_id for entry in plan.entries] == [0]
    assert engine.added[1].block_ids
    engine.cancel(1)
    assert engine.added[1].block_ids == []
    engine.scheduler.complete(plan, engine.executor.run(plan), 1.0)


def test_cancelling_twice_says_there_is_nothing() -> None:
    engine = ToyEngine()
    engine.add(make_sequence(0, [1]))
    assert engine.cancel(0)
    assert not engine.cancel(0)


def test_cancelling_what_is_unknown_says_there_is_nothing() -> None:
    assert ToyEngine().scheduler.cancel(7) is None


def test_cancelling_a_request_ends_all_its_sequences() -> None:
    engine = ToyEngine(max_sequences=2)
    engine.add(*(make_sequence(seq_id, [1] * 5, 9, request_id="r", index=seq_id) for seq_id in range(3)))
    engine.add(make_sequence(3, [1]))
    engine.step()
    ended = engine.scheduler.cancel_request("r")
    assert [seq.index for seq in ended] == [0, 1, 2]
    assert [seq.seq_id for seq in engine.scheduler.sequences()] == [3]


def test_cancelling_a_finished_request_ends_nothing() -> None:
    engine = ToyEngine()
    engine.add(make_sequence(0, [1], 1))
    engine.run()
    assert engine.scheduler.cancel_request("r0") == []


def test_shared_blocks_outlive_the_first_of_two_holders() -> None:
    engine = ToyEngine()
    engine.add(make_sequence(0, [1] * 9, 20))
    engine.step()
    engine.add(make_sequence(1, [1] * 9, 5))
    engine.step()
    engine.cancel(0)
    engine.run()
    engine.check_outputs()

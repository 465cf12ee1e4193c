"""Who gets into the batch, in which order, and who is turned away."""

from __future__ import annotations

import pytest

from millpond.base.errors import ContextLengthError, QueueFullError, RequestError
from tests.sim.toy_engine import ToyEngine, make_sequence


def ids(engine: ToyEngine) -> list[int]:
    return [entry.seq.seq_id for entry in engine.plans[-1].entries]


def test_queue_is_bounded_beyond_the_free_places() -> None:
    engine = ToyEngine(max_sequences=2, max_queue=1)
    for seq_id in range(3):
        engine.add(make_sequence(seq_id, [1]))
    with pytest.raises(QueueFullError) as error:
        engine.add(make_sequence(3, [1]))
    assert error.value.retry_after_s > 0


def test_running_sequences_take_no_place_in_the_queue() -> None:
    engine = ToyEngine(max_sequences=1, max_queue=1)
    engine.add(make_sequence(0, [1], 9))
    engine.step()
    engine.add(make_sequence(1, [1]))
    with pytest.raises(QueueFullError):
        engine.add(make_sequence(2, [1]))


def test_group_enters_together_or_not_at_all() -> None:
    engine = ToyEngine(max_sequences=1, max_queue=2)
    engine.add(make_sequence(0, [1]))
    with pytest.raises(QueueFullError):
        engine.add(*(make_sequence(seq_id, [1]) for seq_id in (1, 2, 3)))
    assert engine.scheduler.stats().num_waiting == 1


def test_group_with_one_that_cannot_fit_leaves_nothing_behind() -> None:
    engine = ToyEngine(max_model_len=8)
    with pytest.raises(ContextLengthError):
        engine.add(make_sequence(0, [1]), make_sequence(1, [1] * 8))
    assert not engine.scheduler.has_work


def test_group_larger_than_the_engine_is_a_request_error() -> None:
    engine = ToyEngine(max_sequences=1, max_queue=1)
    with pytest.raises(RequestError, match="3 sequences") as error:
        engine.add(*(make_sequence(seq_id, [1]) for seq_id in range(3)))
    assert error.value.param == "n"


def test_earlier_arrival_goes_first() -> None:
    engine = ToyEngine(max_sequences=1)
    engine.add(make_sequence(0, [1], arrival_s=2.0))
    engine.add(make_sequence(1, [1], arrival_s=1.0))
    engine.step()
    assert ids(engine) == [1]


def test_lower_priority_number_goes_first() -> None:
    engine = ToyEngine(max_sequences=1)
    engine.add(make_sequence(0, [1], priority=1))
    engine.add(make_sequence(1, [1], priority=0))
    engine.step()
    assert ids(engine) == [1]


def test_urgent_sequence_takes_the_place_of_a_lower_class() -> None:
    engine = ToyEngine(max_sequences=2)
    engine.add(make_sequence(0, [1], 9, priority=1))
    engine.add(make_sequence(1, [2], 9, priority=1))
    engine.step()
    engine.add(make_sequence(2, [3], 9, priority=0))
    plan = engine.step()
    assert plan.preempted == (1,)
    assert ids(engine) == [2, 0]
    engine.run()
    engine.check_outputs()


def test_same_class_never_takes_a_place() -> None:
    engine = ToyEngine(max_sequences=1)
    engine.add(make_sequence(0, [1], 9, arrival_s=5.0))
    engine.step()
    engine.add(make_sequence(1, [1], 9, arrival_s=1.0))
    assert engine.step().preempted == ()


def test_urgent_sequence_takes_the_blocks_of_a_lower_class() -> None:
    engine = ToyEngine(num_blocks=8, block_size=4)
    engine.add(make_sequence(0, [1] * 28, 4, priority=1))
    engine.step()
    engine.add(make_sequence(1, [2] * 20, 2, priority=0))
    assert engine.step().preempted == (0,)
    engine.run()
    engine.check_outputs()


def test_lower_class_is_left_alone_when_its_blocks_would_not_be_enough() -> None:
    engine = ToyEngine(num_blocks=10, block_size=4, max_batch_tokens=40)
    engine.add(make_sequence(0, [1] * 24, 9, priority=0))
    engine.add(make_sequence(1, [2] * 4, 9, priority=1))
    engine.step()
    engine.add(make_sequence(2, [3] * 28, 2, priority=0, arrival_s=9.0))
    assert engine.step().preempted == ()


def test_sequence_does_not_start_without_room_for_its_whole_prompt() -> None:
    engine = ToyEngine(num_blocks=10, block_size=4, max_batch_tokens=8)
    engine.add(make_sequence(0, [1] * 20, 4))
    engine.add(make_sequence(1, [2] * 20, 4))
    engine.step()
    assert engine.scheduler.stats().num_running == 1
    engine.run()
    assert engine.num_preempted == 0
    engine.check_outputs()


def test_sequence_does_not_start_in_the_room_of_a_prompt_that_runs() -> None:
    engine = ToyEngine(num_blocks=10, block_size=4, max_batch_tokens=8)
    engine.add(make_sequence(0, [1] * 24, 4))
    engine.step()
    engine.add(make_sequence(1, [2] * 20, 4))
    engine.step()
    assert engine.scheduler.stats().num_running == 1


def test_sequence_does_not_start_in_the_room_that_others_are_about_to_grow_into() -> None:
    engine = ToyEngine(num_blocks=4, block_size=4)
    engine.add(make_sequence(0, [1] * 4, 12))
    engine.step()
    engine.add(make_sequence(1, [2] * 12, 1))
    engine.step()
    assert engine.scheduler.stats().num_running == 1


def test_cached_blocks_that_nobody_holds_need_room_like_any_other() -> None:
    engine = ToyEngine(num_blocks=8, block_size=4)
    engine.add(make_sequence(0, [1] * 17, 1))
    engine.run()
    engine.add(make_sequence(1, [2] * 9, 12))
    engine.step()
    engine.add(make_sequence(2, [1] * 17, 1))
    engine.step()
    assert engine.scheduler.stats().num_waiting == 1
    engine.run()
    assert engine.num_preempted == 0


def test_batch_never_holds_more_sequences_than_a_step_has_tokens() -> None:
    engine = ToyEngine(max_batch_tokens=3, max_sequences=8)
    for seq_id in range(6):
        engine.add(make_sequence(seq_id, [seq_id], 5))
    engine.step()
    assert engine.scheduler.stats().num_running == 3
    engine.run()
    engine.check_outputs()


def test_unfinished_plan_forbids_the_next() -> None:
    engine = ToyEngine()
    engine.add(make_sequence(0, [1]))
    engine.plan()
    with pytest.raises(RuntimeError, match="complete"):
        engine.plan()


def test_old_plan_cannot_be_completed_again() -> None:
    engine = ToyEngine()
    engine.add(make_sequence(0, [1]))
    plan = engine.step()
    with pytest.raises(ValueError, match="not in flight"):
        engine.scheduler.complete(plan, {0: 1}, 0.0)


def test_plan_without_entries_needs_no_completion() -> None:
    engine = ToyEngine()
    assert engine.plan().entries == ()
    assert engine.plan().entries == ()


def test_first_scheduled_time_is_noted_once() -> None:
    engine = ToyEngine(max_sequences=1)
    engine.add(make_sequence(0, [1], 2))
    engine.add(make_sequence(1, [1], 2))
    engine.run()
    assert [engine.added[seq_id].first_scheduled_s for seq_id in (0, 1)] == [0.0, 2.0]


def test_stats_count_what_happened() -> None:
    engine = ToyEngine(max_sequences=1)
    engine.add(make_sequence(0, [1] * 9, 3))
    engine.add(make_sequence(1, [1] * 9, 3))
    engine.run()
    stats = engine.scheduler.stats()
    assert (stats.steps_total, stats.prompt_tokens_total, stats.output_tokens_total) == (6, 18, 6)
    assert (stats.prefix_query_tokens_total, stats.prefix_hit_tokens_total) == (18, 8)
    assert (stats.num_blocks, stats.num_free_blocks) == (64, 64)
    assert stats.num_cached_blocks > 0

"""The transition log: replay decides the same, differences are found, memory is bounded."""

from __future__ import annotations

import pytest

from millpond.inference.sched import ReplayError, TransitionLog, replay
from tests.sim.toy_engine import ToyEngine, make_sequence


def run_something(log: TransitionLog, count: int = 12) -> ToyEngine:
    """A run with hits, preemptions, a cancel in a step and deadlines."""
    engine = ToyEngine(num_blocks=10, block_size=4, max_batch_tokens=12, trace=log)
    for seq_id in range(count):
        patience = {"deadline_s": engine.now_s + 6} if seq_id % 5 == 4 else {}
        engine.add(make_sequence(seq_id, [seq_id % 3] * 9, 12, priority=seq_id % 2, **patience))
        engine.step(meanwhile=(lambda: engine.cancel(1)) if seq_id == 3 else None)
    engine.run()
    assert engine.num_preempted > 0
    return engine


def test_replay_makes_the_same_plans() -> None:
    log = TransitionLog()
    engine = run_something(log)
    assert replay(log) == len(engine.plans)


def test_replay_can_be_repeated() -> None:
    log = TransitionLog()
    run_something(log)
    assert replay(log) == replay(log)


def test_replay_of_nothing_is_no_step() -> None:
    log = TransitionLog()
    ToyEngine(trace=log)
    assert replay(log) == 0


def test_replay_in_the_middle_of_a_run() -> None:
    log = TransitionLog()
    engine = ToyEngine(trace=log)
    engine.add(make_sequence(0, [1] * 9, 5))
    engine.plan()
    assert replay(log) == 1


def test_refused_sequences_leave_no_record() -> None:
    log = TransitionLog()
    engine = ToyEngine(trace=log, max_model_len=4)
    with pytest.raises(Exception, match="context"):
        engine.add(make_sequence(0, [1] * 9))
    assert log.num_records == 0


def test_drafts_are_replayed() -> None:
    log = TransitionLog()
    engine = ToyEngine(trace=log)
    engine.add(make_sequence(0, [1] * 5, 9))
    engine.step()
    engine.added[0].draft_token_ids = [1, 2, 3]
    engine.run()
    assert replay(log) == len(engine.plans)


def test_log_forgets_its_older_half_and_still_replays() -> None:
    log = TransitionLog(capacity=400)
    engine = run_something(log, count=40)
    num_steps = replay(log)
    assert 0 < num_steps < len(engine.plans)
    assert log.cost < 800


def test_a_changed_decision_is_found() -> None:
    log = TransitionLog()
    run_something(log)
    _, (_, _, digest) = next(record for record in log._segments[0].records if record[0] == "schedule")
    entries = digest[0]
    entries[2] += 1
    with pytest.raises(ReplayError, match="plan of step 0"):
        replay(log)


def test_a_changed_result_is_found() -> None:
    log = TransitionLog()
    run_something(log)
    records = log._segments[0].records
    index = next(i for i, (kind, values) in enumerate(records) if kind == "result" and values[0])
    records[index] = ("result", ((),))
    with pytest.raises(ReplayError, match="result of step"):
        replay(log)


def test_records_keep_no_live_sequence() -> None:
    log = TransitionLog()
    engine = ToyEngine(trace=log)
    engine.add(make_sequence(0, [1, 2], 2))
    engine.run()
    engine.added[0].prompt_token_ids.clear()
    assert replay(log) == 2

"""Preemption by recompute: who stops, what it keeps, and that nobody is stuck in a small pool."""

from __future__ import annotations

from tests.sim.toy_engine import ToyEngine, make_sequence


def fill(engine: ToyEngine, count: int, max_tokens: int = 20) -> None:
    for seq_id in range(count):
        engine.add(make_sequence(seq_id, [seq_id] * 4, max_tokens))


def test_latest_arrival_stops_first() -> None:
    engine = ToyEngine(num_blocks=8, block_size=4, enable_prefix=False)
    fill(engine, 3)
    while not engine.num_preempted:
        engine.step()
    assert engine.plans[-1].preempted == (2,)


def test_lowest_class_stops_before_the_latest() -> None:
    engine = ToyEngine(num_blocks=8, block_size=4, enable_prefix=False)
    for seq_id, priority in enumerate([2, 0, 1]):
        engine.add(make_sequence(seq_id, [seq_id] * 4, 20, priority=priority))
    while not engine.num_preempted:
        engine.step()
    assert engine.plans[-1].preempted == (0,)


def test_preempted_sequence_keeps_its_tokens_and_no_blocks() -> None:
    engine = ToyEngine(num_blocks=8, block_size=4, enable_prefix=False)
    fill(engine, 3)
    while not engine.num_preempted:
        tokens = list(engine.added[2].token_ids)
        engine.step()
    seq = engine.added[2]
    assert (seq.token_ids, seq.block_ids, seq.num_computed_tokens, seq.num_preemptions) == (tokens, [], 0, 1)


def test_outputs_are_those_of_a_run_alone() -> None:
    for enable_prefix in (False, True):
        engine = ToyEngine(num_blocks=9, block_size=4, enable_prefix=enable_prefix, max_batch_tokens=8)
        fill(engine, 6, max_tokens=28)
        engine.run()
        assert engine.num_preempted > 0
        engine.check_outputs()


def test_resumed_sequence_finds_its_own_blocks() -> None:
    engine = ToyEngine(max_sequences=1)
    engine.add(make_sequence(0, [1] * 10, 9, priority=1))
    engine.step()
    engine.step()
    engine.add(make_sequence(1, [2] * 5, 1, priority=0))
    assert engine.step().preempted == (0,)
    resumed = engine.step().entries[0]
    assert (resumed.seq.seq_id, resumed.start, resumed.num_tokens) == (0, 8, 4)
    engine.run()
    engine.check_outputs()


def test_cached_tokens_reported_are_those_of_the_first_start() -> None:
    engine = ToyEngine(num_blocks=8, block_size=4)
    fill(engine, 3)
    engine.run()
    assert [seq.num_cached_tokens for seq in engine.added.values()] == [0, 0, 0]


def test_lone_sequence_that_fills_the_pool_gets_through() -> None:
    engine = ToyEngine(num_blocks=4, block_size=4)
    engine.add(make_sequence(0, [1, 2, 3], 14))
    engine.run()
    assert engine.num_preempted == 0
    engine.check_outputs()


def test_sequences_that_each_fill_the_pool_run_one_after_the_other() -> None:
    engine = ToyEngine(num_blocks=4, block_size=4, max_batch_tokens=4)
    for seq_id in range(5):
        engine.add(make_sequence(seq_id, [seq_id] * 8, 9))
    engine.run()
    engine.check_outputs()


def test_sequence_with_no_room_waits_with_what_it_has_when_nobody_asks_for_it() -> None:
    engine = ToyEngine(num_blocks=5, block_size=4, enable_prefix=False)
    engine.add(make_sequence(0, [1] * 7, 9))
    engine.add(make_sequence(1, [2] * 4, 9))
    while engine.cache.pool.num_free:
        engine.step()
    engine.run()
    engine.check_outputs()

"""A burst's prompts go first: who waits for them, for how long, and when nobody does."""

from __future__ import annotations

from millpond.inference.sched.burst import LONGEST_S, Burst
from tests.sim.toy_engine import ToyEngine, make_sequence

BUDGET = 512


def decoding(count: int, *, step_s: float = 0.1, num_blocks: int = 4096, **arguments: object) -> ToyEngine:
    """An engine in which `count` sequences wait for their next token."""
    engine = ToyEngine(
        max_batch_tokens=BUDGET, max_sequences=64, num_blocks=num_blocks, max_model_len=4096, step_s=step_s
    )
    for seq_id in range(count):
        engine.add(make_sequence(seq_id, [seq_id], 60, **arguments))
    engine.step()
    return engine


def add_prompts(engine: ToyEngine, count: int, tokens: int, **arguments: object) -> list[int]:
    """Prompts of `tokens` tokens that nothing is known of."""
    first = len(engine.added)
    for seq_id in range(first, first + count):
        engine.add(make_sequence(seq_id, [seq_id] * tokens, 30, **arguments))
    return list(range(first, first + count))


def served(engine: ToyEngine) -> set[int]:
    return {entry.seq.seq_id for entry in engine.step().entries}


def test_those_who_decode_wait_while_the_prompts_of_a_burst_are_computed() -> None:
    engine = decoding(4)
    burst = add_prompts(engine, 8, 256)
    for _ in range(4):
        assert not served(engine) & {0, 1, 2, 3}
    assert [len(engine.added[seq_id].output_token_ids) for seq_id in burst] == [1] * 8
    assert served(engine) == set(range(12))
    engine.run()
    engine.check_outputs()


def test_who_gets_a_first_token_in_a_burst_waits_for_the_rest_of_it() -> None:
    engine = decoding(0)
    add_prompts(engine, 16, 128)
    for _ in range(4):
        engine.step()
    assert all(len(seq.output_token_ids) == 1 for seq in engine.added.values())


def test_nobody_waits_for_prompts_that_fit_into_their_step() -> None:
    engine = decoding(4)
    add_prompts(engine, 5, 100)
    assert served(engine) == set(range(9))


def test_nobody_waits_for_as_many_prompts_as_decodes() -> None:
    engine = decoding(8)
    add_prompts(engine, 8, 256)
    assert set(range(8)) <= served(engine)


def test_nobody_waits_for_prompts_that_are_longer_than_a_step() -> None:
    engine = decoding(2)
    add_prompts(engine, 8, BUDGET + 1)
    assert {0, 1} <= served(engine)


def test_nobody_waits_longer_than_the_limit_nor_twice_before_the_prompts_are_done() -> None:
    engine = decoding(4, step_s=1.0)
    add_prompts(engine, 24, 512)
    waited = [not served(engine) & {0, 1, 2, 3} for _ in range(6)]
    assert waited == [True] * int(LONGEST_S) + [False] * 3
    add_prompts(engine, 20, 256)
    assert served(engine) & {0, 1, 2, 3}
    engine.run()
    engine.check_outputs()


def test_the_next_burst_goes_first_again() -> None:
    engine = decoding(2)
    add_prompts(engine, 4, 256)
    while any(seq.num_remaining_tokens > 1 for seq in engine.added.values()):
        assert not served(engine) & {0, 1}
    assert served(engine) == set(range(6))
    add_prompts(engine, 8, 256)
    assert not served(engine) & set(range(6))


def test_nobody_waits_for_a_lower_class() -> None:
    engine = decoding(2)
    add_prompts(engine, 8, 256, priority=1)
    assert {0, 1} <= served(engine)


def test_lower_classes_wait_for_a_higher_one() -> None:
    engine = decoding(2, priority=1)
    add_prompts(engine, 8, 256)
    assert not served(engine) & {0, 1}


def test_nobody_waits_for_prompts_that_memory_has_no_room_for() -> None:
    prompts = [make_sequence(seq_id, [1] * 256) for seq_id in range(1, 9)]
    running = [make_sequence(0, [1]), *prompts]
    assert not Burst().goes_first(running, prompts, BUDGET, 8 * 256 - 1, 0.0)
    assert Burst().goes_first(running, prompts, BUDGET, 8 * 256, 0.0)


def test_every_step_of_a_burst_computes_something_while_memory_is_short() -> None:
    engine = decoding(2, num_blocks=100)
    add_prompts(engine, 12, 96)
    while engine.scheduler.has_work:
        assert engine.step().entries
    engine.check_outputs()

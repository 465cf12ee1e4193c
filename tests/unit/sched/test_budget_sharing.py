"""How a step's tokens are shared: chunks, decodes beside prompts, short prompts beside long ones."""

from __future__ import annotations

from millpond.inference.sched.policy import share_prefill
from tests.sim.toy_engine import ToyEngine, make_sequence


def step_of_first_token(engine: ToyEngine, seq_id: int) -> int:
    return next(
        number
        for number, plan in enumerate(engine.plans)
        for entry in plan.entries
        if entry.seq.seq_id == seq_id and entry.samples
    )


def test_long_prompt_is_computed_in_chunks_of_the_budget() -> None:
    engine = ToyEngine(max_batch_tokens=8)
    engine.add(make_sequence(0, [1] * 20, 1))
    engine.run()
    chunks = [(entry.start, entry.num_tokens, entry.samples) for plan in engine.plans for entry in plan.entries]
    assert chunks == [(0, 8, False), (8, 8, False), (16, 4, True)]


def test_decodes_and_chunks_share_a_step_with_the_decodes_first() -> None:
    engine = ToyEngine(max_batch_tokens=8)
    engine.add(make_sequence(0, [1], 9))
    engine.step()
    engine.add(make_sequence(1, [2] * 20, 1, arrival_s=-1.0))
    plan = engine.step()
    assert [(entry.seq.seq_id, entry.num_tokens) for entry in plan.entries] == [(0, 1), (1, 7)]


def test_a_long_prompt_beside_decodes_is_cut_so_that_they_wait_little() -> None:
    engine = ToyEngine(max_batch_tokens=512, max_sequences=32, num_blocks=256, max_model_len=512)
    for seq_id in range(16):
        engine.add(make_sequence(seq_id, [seq_id], 30))
    engine.step()
    engine.add(make_sequence(16, [9] * 500, 1))
    plan = engine.step()
    assert [(entry.seq.seq_id, entry.num_tokens) for entry in plan.entries if entry.num_tokens > 1] == [(16, 128)]


def burst(decodes: int, prompts: int, tokens: int) -> int:
    """Prompt tokens of the step in which `prompts` of `tokens` each come beside `decodes`."""
    engine = ToyEngine(max_batch_tokens=512, max_sequences=64, num_blocks=2048, max_model_len=512)
    for seq_id in range(decodes):
        engine.add(make_sequence(seq_id, [seq_id], 30))
    engine.step()
    for seq_id in range(decodes, decodes + prompts):
        engine.add(make_sequence(seq_id, [seq_id] * tokens, 1))
    return sum(entry.num_tokens for entry in engine.step().entries) - decodes


def test_a_burst_of_more_prompts_than_decodes_takes_the_whole_budget() -> None:
    assert burst(4, 5, 128) == 508
    assert burst(16, 17, 128) == 496
    assert burst(16, 16, 128) == 128


def test_the_rest_of_a_burst_is_done_at_once_where_it_fits_a_step() -> None:
    assert burst(5, 3, 128) == 384
    assert burst(6, 3, 128) == 64
    assert burst(5, 3, 200) == 64


def test_a_long_prompt_alone_takes_the_whole_budget() -> None:
    engine = ToyEngine(max_batch_tokens=512, num_blocks=256, max_model_len=512)
    engine.add(make_sequence(0, [9] * 500, 1))
    assert [entry.num_tokens for entry in engine.step().entries] == [500]


def test_every_decode_advances_while_a_long_prompt_is_computed() -> None:
    engine = ToyEngine(max_batch_tokens=8, max_sequences=4)
    for seq_id in range(3):
        engine.add(make_sequence(seq_id, [seq_id], 30))
    engine.step()
    engine.add(make_sequence(3, [9] * 60, 1))
    for _ in range(5):
        assert {entry.seq.seq_id for entry in engine.step().entries} == {0, 1, 2, 3}


def test_decodes_leave_a_part_of_a_small_budget_to_prompts() -> None:
    engine = ToyEngine(max_batch_tokens=8, max_sequences=8)
    for seq_id in range(7):
        engine.add(make_sequence(seq_id, [seq_id], 40))
    engine.step()
    engine.add(make_sequence(7, [9] * 20, 1))
    assert max(entry.num_tokens for entry in engine.step().entries) == 2


def test_decodes_take_turns_when_prompts_need_their_part() -> None:
    engine = ToyEngine(max_batch_tokens=8, max_sequences=8)
    for seq_id in range(7):
        engine.add(make_sequence(seq_id, [seq_id], 60))
    engine.step()
    engine.add(make_sequence(7, [9] * 60, 1))
    before = [engine.added[seq_id].num_tokens for seq_id in range(7)]
    for _ in range(14):
        engine.step()
    gained = [engine.added[seq_id].num_tokens - old for seq_id, old in enumerate(before)]
    assert gained == [12] * 7


def test_short_prompt_passes_a_long_one() -> None:
    engine = ToyEngine(max_batch_tokens=8)
    engine.add(make_sequence(0, [1] * 100, 1))
    engine.step()
    engine.add(make_sequence(1, [2] * 4, 1))
    engine.run()
    assert step_of_first_token(engine, 1) == 1


def test_stream_of_short_prompts_does_not_stop_a_long_one() -> None:
    engine = ToyEngine(max_batch_tokens=8, max_sequences=4, max_queue=500)
    engine.add(make_sequence(0, [1] * 100, 1))
    for number in range(1, 100):
        engine.add(make_sequence(number, [number % 17] * 6, 1))
        engine.step()
        if 0 in engine.ends:
            break
    assert len(engine.plans) <= 2 * 100 // 8 + 2


def test_equal_prompts_are_computed_one_after_the_other() -> None:
    engine = ToyEngine(max_batch_tokens=8)
    for seq_id in range(4):
        engine.add(make_sequence(seq_id, [seq_id] * 8, 1))
    engine.run()
    assert [step_of_first_token(engine, seq_id) for seq_id in range(4)] == [0, 1, 2, 3]


def test_share_gives_everyone_all_when_there_is_enough() -> None:
    prompts = [make_sequence(0, [1] * 5), make_sequence(1, [1] * 3)]
    assert share_prefill(prompts, 10) == {0: 5, 1: 3}


def test_share_gives_the_first_half_and_the_rest_to_the_shortest() -> None:
    prompts = [make_sequence(0, [1] * 50), make_sequence(1, [1] * 9), make_sequence(2, [1] * 4)]
    assert share_prefill(prompts, 10) == {0: 5, 1: 1, 2: 4}


def test_share_gives_a_lower_class_only_what_is_left() -> None:
    prompts = [make_sequence(0, [1] * 8), make_sequence(1, [1] * 2, priority=1)]
    assert share_prefill(prompts, 8) == {0: 8, 1: 0}
    assert share_prefill(prompts, 9) == {0: 8, 1: 1}

"""Steps that compute guesses beyond the last known token."""

from __future__ import annotations

from millpond.inference.sched import StepPlan
from tests.sim.toy_engine import ToyEngine, make_sequence
from tests.sim.toy_model import generate_alone


def start(max_tokens: int = 12, **settings: int) -> tuple[ToyEngine, list[int]]:
    """An engine with one sequence that has its first token, and the tokens it is going to have."""
    engine = ToyEngine(**settings)
    seq = make_sequence(0, [1, 2, 3, 4, 5], max_tokens)
    engine.add(seq)
    engine.step()
    return engine, generate_alone(seq, engine.limits.max_model_len)[0]


def draft(engine: ToyEngine, token_ids: list[int]) -> StepPlan:
    engine.added[0].draft_token_ids = token_ids
    return engine.step()


def test_accepted_drafts_are_tokens_gained() -> None:
    engine, output = start()
    plan = draft(engine, output[1:4])
    assert [(entry.num_tokens, entry.num_drafts) for entry in plan.entries] == [(4, 3)]
    assert engine.added[0].output_token_ids == output[:5]
    assert engine.added[0].num_remaining_tokens == 1


def test_rejected_drafts_are_computed_again_as_what_they_are() -> None:
    engine, output = start()
    draft(engine, [output[1], (output[2] + 1) % 17, output[3]])
    assert engine.added[0].output_token_ids == output[:3]
    assert engine.added[0].num_remaining_tokens == 1
    engine.run()
    engine.check_outputs()


def test_drafts_are_gone_after_their_step() -> None:
    engine, output = start()
    draft(engine, output[1:2])
    assert engine.added[0].draft_token_ids == []


def test_stop_token_ends_the_sequence_within_accepted_drafts() -> None:
    engine, output = start()
    engine.added[0].stop_token_ids = frozenset({output[2]})
    draft(engine, output[1:6])
    assert engine.ends[0] == ("stop", output[2])
    assert engine.added[0].output_token_ids == output[: output.index(output[2]) + 1]


def test_drafts_never_reach_beyond_the_longest_output() -> None:
    engine, output = start(max_tokens=3)
    assert draft(engine, [*output[1:], 1, 1]).entries[0].num_drafts == 1
    assert engine.ends[0] == ("length", None)


def test_drafts_take_only_what_is_left_of_the_budget() -> None:
    engine, _ = start(max_batch_tokens=6)
    engine.add(make_sequence(1, [7] * 4, 9))
    plan = draft(engine, [1, 2, 3])
    assert [(entry.seq.seq_id, entry.num_tokens) for entry in plan.entries] == [(0, 2), (1, 4)]


def test_drafts_never_stop_another_sequence() -> None:
    engine = ToyEngine(num_blocks=4, block_size=4)
    engine.add(make_sequence(0, [1] * 4, 9))
    engine.add(make_sequence(1, [2] * 5, 3))
    engine.step()
    engine.added[0].draft_token_ids = [1] * 6
    plan = engine.step()
    assert plan.preempted == ()
    assert plan.num_tokens <= 2 + 3


def test_drafts_of_a_sequence_cancelled_in_its_step_leave_nothing_findable() -> None:
    engine, output = start()
    known = list(engine.added[0].token_ids)
    engine.added[0].draft_token_ids = [1] * 6
    engine.step(meanwhile=lambda: engine.cancel(0))
    engine.add(make_sequence(1, known + [1] * 7, 1))
    engine.run()
    assert engine.added[1].num_cached_tokens <= len(known)
    engine.check_outputs()
    assert output

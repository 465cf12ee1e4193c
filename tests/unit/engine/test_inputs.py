"""The arrays of a step are what its entries say, token by token, whatever the steps before it left in their memory."""

from __future__ import annotations

import random

import numpy as np
import pytest

from millpond.inference.engine.inputs import BuiltStep, InputBuilder
from millpond.inference.sched.state import Sequence
from millpond.inference.sched.step import StepEntry

SIZE = 4  # tokens in a block
MAX_LENGTH = 40


def make_builder() -> InputBuilder:
    return InputBuilder(max_batch_tokens=6 * MAX_LENGTH, max_sequences=6, max_model_len=MAX_LENGTH, block_size=SIZE)


def make_sequence(seq_id: int, chance: random.Random) -> Sequence:
    prompt = [chance.randrange(1000) for _ in range(chance.randrange(1, 12))]
    return Sequence(seq_id=seq_id, request_id=str(seq_id), prompt_token_ids=prompt, max_tokens=30)


def make_entry(seq: Sequence, num_tokens: int, chance: random.Random) -> StepEntry:
    """The next tokens of a sequence, with blocks for them."""
    end = seq.num_computed_tokens + num_tokens
    while len(seq.block_ids) * SIZE < end:
        seq.block_ids.append(chance.randrange(500))
    return StepEntry(seq, seq.num_computed_tokens, num_tokens, end == seq.num_tokens)


def check(built: BuiltStep, entries: list[StepEntry]) -> None:
    """Compares with what a loop over tokens gives."""
    inputs, row = built.inputs, 0
    sampled = []
    for b, (seq, start, num_tokens, samples, _) in enumerate(entries):
        assert inputs.query_start[b] == row
        assert inputs.context_len[b] == start + num_tokens
        assert inputs.block_tables[b, : len(seq.block_ids)].tolist() == seq.block_ids
        for position in range(start, start + num_tokens):
            assert inputs.token_ids[row] == seq.token_ids[position]
            assert inputs.positions[row] == position
            assert inputs.slots[row] == seq.block_ids[position // SIZE] * SIZE + position % SIZE
            row += 1
        if samples:
            sampled.append((seq, row - 1))
    assert (inputs.num_tokens, inputs.num_sequences, inputs.query_start[-1]) == (row, len(entries), row)
    assert inputs.logit_rows.tolist() == [last for _, last in sampled]
    assert [(seq, at) for seq, at, _ in built.sample_rows] == [(seq, at) for at, (seq, _) in enumerate(sampled)]


@pytest.mark.parametrize("seed", range(20))
def test_arrays_equal_a_loop_over_tokens_while_sequences_come_go_and_are_preempted(seed: int) -> None:
    chance = random.Random(seed)
    builder, running, born = make_builder(), list[Sequence](), 0
    for _ in range(150):
        while not running or (len(running) < 6 and chance.random() < 0.2):
            running.append(make_sequence(born, chance))
            born += 1
        cut = chance.choice((1, 3, 64))  # steps of one token each are the usual ones
        entries = [make_entry(seq, min(seq.num_remaining_tokens, cut), chance) for seq in running]
        check(builder.build(entries), entries)
        for seq, start, num_tokens, samples, _ in entries:
            seq.num_computed_tokens = start + num_tokens
            if samples:
                seq.token_ids.append(chance.randrange(1000))
                seq.num_tokens += 1
            if chance.random() < 0.03:  # preempted: other blocks next time
                builder.forget(seq.seq_id)
                seq.block_ids, seq.num_computed_tokens = [], 0
            elif seq.num_tokens >= MAX_LENGTH or chance.random() < 0.03:
                builder.forget(seq.seq_id)
                running.remove(seq)


def test_a_step_of_the_same_shape_reuses_the_inputs_of_the_one_before() -> None:
    chance = random.Random(0)
    builder, seq = make_builder(), make_sequence(0, chance)
    seen = []
    for _ in range(10):
        entry = make_entry(seq, 1, chance)
        built = builder.build([entry])
        check(built, [entry])
        if entry.samples:
            seen.append(built.inputs)
            seq.token_ids.append(7)
            seq.num_tokens += 1
        seq.num_computed_tokens += 1
    assert len(seen) > 1
    assert all(inputs is seen[0] for inputs in seen)
    assert np.shares_memory(seen[0].token_ids, seen[-1].token_ids)

"""Penalties, against transformers and against OpenAI's formula written out."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import RepetitionPenaltyLogitsProcessor

from millpond.inference.sampling.penalties import Penalties

VOCAB = 300
TOKENS = st.lists(st.integers(0, VOCAB - 1), max_size=200)


def make_penalties(repetition: float = 1.0, presence: float = 0.0, frequency: float = 0.0) -> Penalties:
    return Penalties(repetition=repetition, presence=presence, frequency=frequency, vocab_size=VOCAB)


def make_row() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(VOCAB).astype(np.float32) * 4


@given(TOKENS, TOKENS, st.sampled_from([0.5, 1.1, 1.3, 5.0]))
def test_repetition_penalty_equals_that_of_transformers(
    prompt: list[int], output: list[int], repetition: float
) -> None:
    row, expected = make_row(), torch.from_numpy(make_row())[None]
    penalties = make_penalties(repetition=repetition)
    penalties.add_prompt(prompt)
    for token in output:
        penalties.add_output(token)

    penalties.apply(row)

    if prompt + output:
        expected = RepetitionPenaltyLogitsProcessor(repetition)(torch.tensor([prompt + output]), expected)
    assert torch.equal(torch.from_numpy(row), expected[0])


@given(TOKENS, TOKENS, st.floats(-2, 2), st.floats(-2, 2))
def test_presence_and_frequency_follow_openai_and_look_at_the_output_alone(
    prompt: list[int], output: list[int], presence: float, frequency: float
) -> None:
    row = make_row()
    penalties = make_penalties(presence=presence, frequency=frequency)
    penalties.add_prompt(prompt)
    for token in output:
        penalties.add_output(token)

    penalties.apply(row)

    expected = make_row().astype(np.float64)
    for token, count in Counter(output).items():
        expected[token] -= count * frequency + float(count > 0) * presence
    np.testing.assert_allclose(row, expected, atol=1e-4)


def test_repetition_comes_before_presence() -> None:
    row = np.array([8.0, -8.0], dtype=np.float32)
    penalties = Penalties(repetition=2.0, presence=1.0, frequency=0.0, vocab_size=2)
    penalties.add_output(0)
    penalties.add_output(1)

    penalties.apply(row)

    assert row.tolist() == [8.0 / 2 - 1, -8.0 * 2 - 1]


@pytest.mark.parametrize("token", [-1, VOCAB, 10**12])
def test_tokens_outside_the_vocabulary_are_ignored(token: int) -> None:
    row = make_row()
    penalties = make_penalties(repetition=2.0, presence=1.0)
    penalties.add_prompt([token])
    penalties.add_output(token)

    penalties.apply(row)

    assert np.array_equal(row, make_row())

"""Bad words, against transformers."""

from __future__ import annotations

import math

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import NoBadWordsLogitsProcessor

from millpond.api.request import SamplingParams
from millpond.inference.sampling.bad_words import BadWords
from millpond.inference.sampling.sampler import Sampler, SampleRow

VOCAB = 12  # few tokens, so that words are met often
TOKENS = st.lists(st.integers(0, VOCAB - 1), max_size=12)
WORDS = st.lists(st.lists(st.integers(0, VOCAB - 1), min_size=1, max_size=4), min_size=1, max_size=8)


def make_row(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(VOCAB).astype(np.float32)


@given(WORDS, TOKENS.filter(bool), TOKENS)
def test_the_same_tokens_are_ruled_out_as_in_transformers(
    words: list[list[int]], prompt: list[int], output: list[int]
) -> None:
    row = make_row()
    bad_words = BadWords(words, prompt)
    for token_id in output:
        bad_words.add(token_id)

    bad_words.apply(row)

    processor = NoBadWordsLogitsProcessor(words)
    expected = processor(torch.tensor([prompt + output]), torch.from_numpy(make_row())[None])
    assert np.array_equal(row, expected[0].numpy())


def test_a_sequence_never_says_a_bad_word_and_its_neighbour_may() -> None:
    sampler = Sampler(VOCAB, 0)
    bad = SamplingParams(temperature=0.0, bad_words_ids=((5,), (3, 4)))
    sampler.add(0, bad, [3])
    sampler.add(1, SamplingParams(temperature=0.0), [3])
    likeliest = torch.zeros(2, VOCAB)
    likeliest[:, 5], likeliest[:, 4], likeliest[:, 3] = 9.0, 8.0, 7.0

    steps = [sampler.sample(likeliest.clone(), [SampleRow(0, 0), SampleRow(1, 1)]) for _ in range(4)]

    assert [step[0].token_id for step in steps] == [3, 3, 3, 3]  # 4 would follow 3, which the prompt ends with
    assert [step[1].token_id for step in steps] == [5, 5, 5, 5]


def test_log_probabilities_are_those_of_the_model() -> None:
    sampler = Sampler(VOCAB, 0)
    sampler.add(0, SamplingParams(temperature=0.0, logprobs=1, bad_words_ids=((5,),)), [1])
    row = torch.zeros(1, VOCAB)
    row[0, 5], row[0, 2] = 3.0, 2.0
    expected = torch.log_softmax(row[0], -1)

    token = sampler.sample(row.clone(), [SampleRow(0, 0)])[0]

    assert token.token_id == 2
    assert token.logprob is not None
    assert math.isclose(token.logprob.logprob, float(expected[2]), abs_tol=1e-5)
    assert token.logprob.top[0][0] == 5


def test_a_row_without_a_permitted_token_ends_its_sequence_alone() -> None:
    sampler = Sampler(VOCAB, 0)
    sampler.add(0, SamplingParams(temperature=0.0, bad_words_ids=tuple((i,) for i in range(VOCAB))), [1])
    sampler.add(1, SamplingParams(temperature=0.0), [1])

    first, second = sampler.sample(torch.ones(2, VOCAB), [SampleRow(0, 0), SampleRow(1, 1)])

    assert first.error is not None
    assert second.error is None

"""A draft model's guesses leave the model's distribution as it is, however wrong they are."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from millpond.api.request import SamplingParams
from millpond.inference.sampling.drafts import DraftOdds, draw_other, is_kept
from millpond.inference.sampling.sampler import Sampler, SampleRow
from tests.unit.sampling.reference import chi_square, softmax

VOCAB = 5
MODEL = np.random.default_rng(1).standard_normal((VOCAB + 1, VOCAB)).astype(np.float32) * 1.5
DRAFTS = {
    "like the model": MODEL + np.random.default_rng(2).standard_normal(MODEL.shape).astype(np.float32) * 0.4,
    "against the model": -MODEL,
    "sure of one token": np.eye(VOCAB + 1, VOCAB, k=-1, dtype=np.float32) * 50,
    "the model itself": MODEL,
}
LENGTH = 3  # tokens that are looked at: the whole of what follows
TRIALS = 4_000


def generate(draft_logits: np.ndarray, num_guesses: int, params: SamplingParams) -> tuple[np.ndarray, int]:
    """How often each text of LENGTH tokens came from a model that looks at the last token, and guesses kept."""
    sampler = Sampler(VOCAB, 7, rejects_drafts=True)
    for i in range(TRIALS):
        seed = None if params.seed is None else params.seed + i
        sampler.add(i, SamplingParams(temperature=params.temperature, top_k=params.top_k, seed=seed), [0])
    texts: list[list[int]] = [[] for _ in range(TRIALS)]
    num_kept = 0
    while open_ids := [i for i, text in enumerate(texts) if len(text) < LENGTH]:
        contexts = {i: texts[i][-1:] or [VOCAB] for i in open_ids}
        odds: dict[int, list[DraftOdds | None]] = {i: [] for i in open_ids}
        for ahead in range(num_guesses):
            rows = torch.from_numpy(draft_logits[[contexts[i][-1] for i in open_ids]])
            drafts = sampler.draft(rows, [SampleRow(i, place) for place, i in enumerate(open_ids)], ahead)
            for i, draft in zip(open_ids, drafts, strict=True):
                assert draft is not None
                contexts[i].append(draft.token_id)
                odds[i].append(draft.odds)
        width = num_guesses + 1
        wanted = [
            SampleRow(i, width * place, contexts[i][1:], odds[i] if num_guesses else [])
            for place, i in enumerate(open_ids)
        ]
        logits = torch.from_numpy(MODEL[[token for i in open_ids for token in contexts[i]]])
        tokens = sampler.sample(logits, wanted)
        num_kept += len(tokens) - len(open_ids)
        for token in tokens:
            texts[token.seq_id].append(token.token_id)
    counts = np.zeros(VOCAB**LENGTH, np.int64)
    for text in texts:
        counts[np.ravel_multi_index(text[:LENGTH], (VOCAB,) * LENGTH)] += 1
    return counts, num_kept


def exact(temperature: float, top_k: int = 0) -> np.ndarray:
    """The probability of every text, worked out."""
    rows = []
    for logits in MODEL:
        kept = logits.astype(np.float64).copy()
        if top_k:
            kept[np.argsort(-kept)[top_k:]] = -np.inf
        rows.append(softmax(kept, temperature))
    result = np.zeros(VOCAB**LENGTH)
    for text in itertools.product(range(VOCAB), repeat=LENGTH):
        steps = zip((VOCAB, *text), text, strict=False)
        result[np.ravel_multi_index(text, (VOCAB,) * LENGTH)] = np.prod([rows[a][b] for a, b in steps])
    return result


@pytest.mark.parametrize(("name", "num_guesses"), [(name, 3) for name in DRAFTS] + [("like the model", 1)])
def test_texts_follow_the_models_distribution_whatever_is_guessed(name: str, num_guesses: int) -> None:
    counts, num_kept = generate(DRAFTS[name], num_guesses, SamplingParams(temperature=0.9))
    assert chi_square(counts, exact(0.9)) < 4
    if name == "the model itself":  # equal distributions keep every guess
        assert num_kept >= TRIALS * LENGTH * num_guesses // (num_guesses + 1)


def test_truncated_distributions_are_kept_as_well() -> None:
    counts, _ = generate(DRAFTS["like the model"], 2, SamplingParams(temperature=1.3, top_k=3))
    expected = exact(1.3, 3)
    assert not counts[expected == 0].any()
    assert chi_square(counts[expected > 0], expected[expected > 0]) < 4


def test_with_a_seed_the_tokens_are_those_without_guesses() -> None:
    params = SamplingParams(temperature=0.9, seed=5)
    plain, _ = generate(DRAFTS["like the model"], 0, params)
    guessed, num_kept = generate(DRAFTS["like the model"], 3, params)
    assert (plain == guessed).all()
    assert num_kept > TRIALS


def test_without_rejection_unseeded_tokens_are_those_without_guesses_too() -> None:
    logits = torch.from_numpy(MODEL)
    texts = []
    for num_guesses in (0, 2):
        sampler = Sampler(VOCAB, 7)
        sampler.add(0, SamplingParams(), [0])
        text = [0]
        while len(text) < 40:
            drafts = [sampler.draft(logits[:1], [SampleRow(0, 0)], ahead) for ahead in range(num_guesses)]
            guesses = [draft.token_id for (draft,) in drafts if draft is not None]
            assert all(draft is None or draft.odds is None for (draft,) in drafts)
            rows = logits[[text[-1], *guesses]]
            text += [token.token_id for token in sampler.sample(rows, [SampleRow(0, 0, guesses)])]
        texts.append(text[:40])
    assert texts[0] == texts[1]


def test_greedy_guesses_are_the_likeliest_tokens() -> None:
    sampler = Sampler(VOCAB, 7, rejects_drafts=True)
    sampler.add(0, SamplingParams(temperature=0.0), [0])
    (draft,) = sampler.draft(torch.from_numpy(MODEL[:1]), [SampleRow(0, 0)], 2)
    assert draft is not None
    assert (draft.token_id, draft.odds) == (int(MODEL[0].argmax()), None)


def test_a_row_that_is_no_numbers_gives_no_guess() -> None:
    sampler = Sampler(VOCAB, 7)
    sampler.add(0, SamplingParams(), [0])
    assert sampler.draft(torch.full((1, VOCAB), float("nan")), [SampleRow(0, 0)], 0) == [None]


odds = st.lists(st.tuples(st.integers(0, 9), st.floats(0.01, 1.0)), min_size=1, max_size=8, unique_by=lambda x: x[0])


def make_odds(pairs: list[tuple[int, float]]) -> DraftOdds:
    pairs = sorted(pairs)
    weights = np.array([weight for _, weight in pairs])
    return DraftOdds(np.array([token for token, _ in pairs]), weights / weights.sum())


@settings(max_examples=25, deadline=None)
@given(odds, odds)
def test_kept_and_replaced_together_are_the_wanted_odds(guessed_pairs: list, wanted_pairs: list) -> None:
    guessed, wanted = make_odds(guessed_pairs), make_odds(wanted_pairs)
    grid = (np.arange(500) + 0.5) / 500
    result = np.zeros(10)
    replaced = np.bincount([draw_other(guessed, wanted, float(u)) for u in grid], minlength=10) / 500
    for token_id, probability in zip(guessed.ids.tolist(), guessed.probabilities.tolist(), strict=True):
        kept = float(np.mean([is_kept(token_id, guessed, wanted, float(u)) for u in grid]))
        result[token_id] += probability * kept
        result += probability * (1 - kept) * replaced
    expected = [wanted.of(token_id) for token_id in range(10)]
    assert result == pytest.approx(expected, abs=1e-2)

"""Log-probabilities, against torch's log_softmax."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from millpond.inference.sampling.draw import Scratch
from millpond.inference.sampling.logprobs import log_normaliser, token_logprob, top_logprobs


def make_row(size: int, scale: float = 4.0) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(size)) * scale


@pytest.mark.parametrize("size", [1, 3, 64, 1000, 49_152, 50_257])
def test_logprob_rank_and_alternatives_are_those_of_log_softmax(size: int) -> None:
    row = make_row(size)
    expected = torch.log_softmax(row.double(), dim=0)
    best = expected.topk(min(20, size))
    scratch = Scratch(size)

    for token in {0, size // 2, size - 1, int(row.argmax())}:
        found = token_logprob(row.numpy(), token, 20, scratch)

        assert found.token_id == token
        assert found.logprob == pytest.approx(float(expected[token]), abs=2e-6)
        assert found.rank == int((row > row[token]).sum()) + 1
        assert [token_id for token_id, _ in found.top] == best.indices.tolist()
        assert [logprob for _, logprob in found.top] == pytest.approx(best.values.tolist(), abs=2e-6)


def test_equal_tokens_share_a_rank_and_are_listed_by_id() -> None:
    row = np.array([1.0, 3.0, 3.0, 2.0, 3.0], dtype=np.float32)

    found = token_logprob(row, 4, 3, Scratch(5))

    assert found.rank == 1
    assert [token_id for token_id, _ in found.top] == [1, 2, 4]


def test_impossible_tokens_are_minus_infinity_and_never_listed() -> None:
    row = np.array([0.0, -np.inf, 0.0], dtype=np.float32)

    found = token_logprob(row, 1, 3, Scratch(3))

    assert found.logprob == -math.inf
    assert found.top == [(0, pytest.approx(-math.log(2))), (2, pytest.approx(-math.log(2)))]


def test_a_certain_token_has_logprob_zero() -> None:
    row = np.array([0.0, 500.0], dtype=np.float32)

    assert token_logprob(row, 1, 0, Scratch(2)).logprob == 0.0


def test_no_alternatives_are_listed_when_none_are_asked_for() -> None:
    row = make_row(100).numpy()

    assert top_logprobs(row, 0, log_normaliser(row, row.max(), Scratch(100))) == []


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_without_a_distribution_gives_nan_and_rank_zero(bad: float) -> None:
    row = np.array([0.0, bad, 1.0], dtype=np.float32)

    found = token_logprob(row, 0, 2, Scratch(3))

    assert math.isnan(found.logprob)
    assert (found.rank, found.top) == (0, [])


@pytest.mark.parametrize("shift", [-1e4, -100.0, -59.0, 0.0, 59.0, 61.0, 1e4])
def test_rows_far_from_zero_have_the_same_numbers(shift: float) -> None:
    row = np.random.default_rng(1).normal(size=50_000).astype(np.float32) * 4 + np.float32(shift)
    exact = row.astype(np.float64) - row.max()
    expected = exact - np.log(np.exp(exact).sum())
    for token_id in (int(row.argmax()), 7, 49_999):
        known = row.max() if token_id == 7 else None
        chosen = token_logprob(row, token_id, 0, Scratch(50_000), peak=known)
        assert chosen.logprob == pytest.approx(expected[token_id], abs=2e-6 * max(1.0, abs(shift)))
        assert chosen.rank == int((row > row[token_id]).sum()) + 1

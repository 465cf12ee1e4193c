"""Truncation and penalties written down plainly, in float64 with full sorts, to test the sampler against."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64Array = npt.NDArray[np.float64]


def softmax(logits: npt.NDArray[np.floating], temperature: float = 1.0) -> Float64Array:
    """Probabilities of a row of logits."""
    scaled = logits.astype(np.float64) / temperature
    weights = np.exp(scaled - scaled.max())
    return weights / weights.sum()


def by_likelihood(logits: npt.NDArray[np.floating]) -> list[int]:
    """Token ids, likeliest first, equal ones by id."""
    return sorted(range(logits.size), key=lambda token: (-logits[token], token))


def shortlist(logits: npt.NDArray[np.floating], temperature: float, top_k: int, min_p: float) -> list[int]:
    """What min-p and top-k leave, likeliest first."""
    probabilities = softmax(logits, temperature)
    order = [token for token in by_likelihood(logits) if logits[token] > -np.inf]
    if top_k > 0:
        least = logits[order[min(top_k, len(order)) - 1]]
        order = [token for token in order if logits[token] >= least]
    return [token for token in order if probabilities[token] >= min_p * probabilities.max() * (1 - 1e-6)]


def chi_square(counts: npt.NDArray[np.int64], probabilities: Float64Array) -> float:
    """How many standard deviations Pearson's statistic lies above its mean, tokens that are rare taken together."""
    expected = probabilities * counts.sum()
    common = expected >= 5
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(expected[common], expected[~common].sum())
    if expected[-1] < 5:
        assert observed[-1] <= 20
        observed, expected = observed[:-1], expected[:-1]
    freedom = observed.size - 1
    statistic = float(((observed - expected) ** 2 / expected).sum())
    return (statistic - freedom) / (2 * freedom) ** 0.5

"""Log-probabilities of the distribution the model gave, before temperature, penalties and masks.

Owns the normaliser, the rank and the list of likeliest alternatives of one row. Called by `sampler` for chosen tokens
and for prompts, and by beam search for its candidates. One row, one thread: equal rows give equal bits.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from millpond.api.request import TokenLogprob
from millpond.inference.sampling.draw import Scratch, find_top

Float32Array = npt.NDArray[np.float32]


def log_normaliser(row: Float32Array, scratch: Scratch) -> float:
    """log(sum(exp(row))), natural; NaN when the row has a NaN or +inf, or nothing but -inf."""
    peak = row.max()
    if not math.isfinite(peak):
        return math.nan
    scratch.fill_weights(row, peak)
    return float(peak) + math.log(float(scratch.sum_blocks()[-1]))


def top_logprobs(row: Float32Array, count: int, normaliser: float) -> list[tuple[int, float]]:
    """The `count` likeliest tokens and their log-probabilities, best first; equal ones by lower id."""
    if count <= 0:
        return []
    ids, values = find_top(row, count)
    order = np.argsort(-values, kind="stable")[:count]
    return [
        (token_id, min(value - normaliser, 0.0))
        for token_id, value in zip(ids[order].tolist(), values[order].tolist(), strict=True)
    ]


def token_logprob(row: Float32Array, token_id: int, count: int, scratch: Scratch) -> TokenLogprob:
    """The log-probability and rank of a token beside the `count` likeliest ones.

    A row without a distribution (NaN, +inf, all -inf) gives logprob NaN, rank 0 and no alternatives.
    """
    normaliser = log_normaliser(row, scratch)
    if math.isnan(normaliser):
        return TokenLogprob(token_id, math.nan, 0, [])
    value = row[token_id]
    rank = int(np.count_nonzero(row > value)) + 1
    logprob = min(float(value) - normaliser, 0.0)
    return TokenLogprob(token_id, logprob, rank, top_logprobs(row, count, normaliser))

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

SAFE_PEAK = 60.0  # exponentials of a row with such a peak, and their sum, stay within float32 as they are


def log_normaliser(row: Float32Array, peak: np.float32, scratch: Scratch) -> float:
    """log(sum(exp(row))), natural; NaN when the largest entry `peak` says that there is no distribution."""
    if not math.isfinite(peak):
        return math.nan
    if abs(peak) < SAFE_PEAK:
        np.exp(row, out=scratch.row)
        return math.log(scratch.sum_row())
    scratch.fill_weights(row, peak)
    return float(peak) + math.log(scratch.sum_row())


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


def token_logprob(
    row: Float32Array,
    token_id: int,
    count: int,
    scratch: Scratch,
    *,
    peak: np.float32 | None = None,
    total: float | None = None,
) -> TokenLogprob:
    """The log-probability and rank of a token beside the `count` likeliest ones.

    A row without a distribution (NaN, +inf, all -inf) gives logprob NaN, rank 0 and no alternatives. `peak` is the
    row's largest entry where it is known already, `total` the sum of its exponentials, right if that peak is safe.
    """
    if peak is None:
        peak = row.max()
    is_summed = abs(peak) < SAFE_PEAK and total is not None
    normaliser = math.log(total or math.nan) if is_summed else log_normaliser(row, peak, scratch)
    if math.isnan(normaliser):
        return TokenLogprob(token_id, math.nan, 0, [])
    value = row[token_id]
    rank = 1 if value == peak else int(np.count_nonzero(row > value)) + 1
    logprob = min(float(value) - normaliser, 0.0)
    return TokenLogprob(token_id, logprob, rank, top_logprobs(row, count, normaliser))

"""Guesses drawn from a draft model's logits, and the choice that keeps the model's own distribution.

Owns the arithmetic of rejection sampling on one row: a guess x drawn with probability q(x) is kept with probability
min(1, p(x)/q(x)), and else a token is drawn from what p has more of than q. Then tokens follow p, whatever q is. Knows
nothing of seeds or sequences; `sampler` passes random numbers in.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from millpond.inference.sampling.draw import Scratch, Truncation, find_kept, pick

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]

_MOST_GUESSED = 64  # guesses are drawn from this many likeliest tokens; any distribution will do


@dataclass(frozen=True, slots=True)
class DraftOdds:
    """What a guess was drawn from: ids in ascending order and their probabilities, which sum to 1."""

    ids: Int64Array
    probabilities: Float64Array

    def of(self, token_id: int) -> float:
        """The probability of a token."""
        index = int(np.searchsorted(self.ids, token_id))
        if index == self.ids.size or self.ids[index] != token_id:
            return 0.0
        return float(self.probabilities[index])


@dataclass(frozen=True, slots=True)
class Draft:
    """A guess. With `odds` it is kept or replaced by rejection; without, it is kept when it is what would be chosen."""

    token_id: int
    odds: DraftOdds | None = None


def draw_draft(row: Float32Array, peak: np.float32, kept: Truncation, uniform: float, scratch: Scratch) -> Draft:
    """Draws a guess from a draft model's row, with the odds that `is_kept` and `draw_other` need.

    Args:
        row: [V] the draft model's logits; not changed.
        peak: The row's largest entry; finite.
        kept: Temperature and truncation of the sequence.
        uniform: Random number that nothing else uses.
        scratch: Overwritten.
    """
    narrow = replace(kept, top_k=min(kept.top_k or _MOST_GUESSED, _MOST_GUESSED))
    ids, weights = find_kept(row, peak, narrow, scratch)
    probabilities = weights.astype(np.float64)
    probabilities /= probabilities.sum()
    return Draft(int(ids[pick(probabilities, uniform)]), DraftOdds(ids, probabilities))


def find_odds(row: Float32Array, peak: np.float32, kept: Truncation, scratch: Scratch) -> DraftOdds:
    """The distribution that a row's token is drawn from."""
    ids, weights = find_kept(row, peak, kept, scratch)
    probabilities = weights.astype(np.float64)
    return DraftOdds(ids, probabilities / probabilities.sum())


def is_kept(token_id: int, guessed: DraftOdds, wanted: DraftOdds, uniform: float) -> bool:
    """Whether a guess drawn from `guessed` stays, where tokens shall follow `wanted`."""
    return uniform * guessed.of(token_id) < wanted.of(token_id)


def draw_other(guessed: DraftOdds, wanted: DraftOdds, uniform: float) -> int:
    """A token in place of a guess that was not kept."""
    lacking = wanted.probabilities.copy()
    places = np.searchsorted(wanted.ids, guessed.ids)
    places[places == wanted.ids.size] = 0
    shared = wanted.ids[places] == guessed.ids
    lacking[places[shared]] -= guessed.probabilities[shared]
    np.maximum(lacking, 0.0, out=lacking)
    if not lacking.any():  # equal but for rounding
        lacking = wanted.probabilities
    return int(wanted.ids[pick(lacking, uniform)])

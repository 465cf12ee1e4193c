"""Choosing a token from one row of logits: temperature, min-p, top-k, top-p, typical-p and the draw itself.

Owns the arithmetic of truncation and inverse-CDF sampling. Every function works on one row with one thread, so a row's
result cannot depend on the rows beside it. Knows nothing of seeds or sequences; `sampler` passes the random number in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int64Array = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

# Below this a temperature is greedy, as in vLLM: the quotient would leave float32's range.
GREEDY_TEMPERATURE = 1e-5
# Keeps -inf * inverse_temperature from becoming NaN when a temperature is beyond float32.
_SMALLEST_INVERSE = 1e-30
_BLOCK = 1024  # weights summed at once; the draw looks inside one block only
_LIKELY_NUCLEUS = 256  # tokens among which a top-p nucleus is looked for first
_GROUPS = 64  # rows of the view whose column maxima bound the k-th largest value


@dataclass(frozen=True, slots=True)
class Truncation:
    """Which tokens of a row may be drawn.

    Attributes:
        inverse_temperature: What logits are multiplied with.
        top_k: Keep the k most likely tokens and all that tie with the last of them; 0 keeps all.
        top_p: Keep the fewest most likely tokens whose mass reaches this; equal ones by lower id; 1 keeps all.
        min_p: Keep tokens at least this likely relative to the most likely one; 0 keeps all.
        typical_p: Of those, keep the ones whose information is nearest to the average, until their mass reaches this
            (locally typical sampling); 1 keeps all.
    """

    inverse_temperature: float
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0


def make_truncation(temperature: float, top_k: int, top_p: float, min_p: float, typical_p: float = 1.0) -> Truncation:
    """The truncation for a temperature above `GREEDY_TEMPERATURE`."""
    return Truncation(max(1.0 / temperature, _SMALLEST_INVERSE), max(top_k, 0), top_p, min_p, typical_p)


class Scratch:
    """A row of float32 that a step's rows share, padded with zeros to whole blocks."""

    __slots__ = ("blocks", "row")

    def __init__(self, vocab_size: int) -> None:
        self.blocks: Float32Array = np.zeros((-(-vocab_size // _BLOCK), _BLOCK), dtype=np.float32)
        self.row: Float32Array = self.blocks.reshape(-1)[:vocab_size]

    def fill_weights(self, row: Float32Array, peak: np.float32, inverse_temperature: float = 1.0) -> None:
        """Sets `self.row` to exp((row - peak) * inverse_temperature)."""
        np.subtract(row, peak, out=self.row)
        if inverse_temperature != 1.0:
            np.multiply(self.row, np.float32(inverse_temperature), out=self.row)
        np.exp(self.row, out=self.row)

    def sum_row(self) -> float:
        """Sum of the row. The blocks are added to each other first: a third of the time of summing each."""
        return float(np.add.reduce(self.blocks, axis=0).sum(dtype=np.float64))

    def sum_blocks(self) -> Float64Array:
        """Running sum over the blocks; its last entry is the sum of the row."""
        return np.cumsum(np.add.reduce(self.blocks, axis=1), dtype=np.float64)


def find_top(row: Float32Array, count: int) -> tuple[Int64Array, Float32Array]:
    """Ids (ascending) and values of the `count` largest entries and of all that equal the least of them.

    Entries of -inf are left out. The maxima of many small groups give a value that at least `count` entries reach, so
    two passes over the row find the few candidates and the vocabulary is never sorted.
    """
    size = row.size
    count = min(count, size)
    width = size // _GROUPS
    if 2 * count <= width:
        maxima = np.maximum.reduce(row[: _GROUPS * width].reshape(_GROUPS, width), axis=0)
        floor = np.partition(maxima, width - count)[width - count]
        ids = np.flatnonzero(row >= floor)
        values = row[ids]
    else:
        ids, values = np.arange(size), row
    least = np.partition(values, values.size - count)[values.size - count]
    keep = values >= least if least > -math.inf else values > -math.inf
    return ids[keep], values[keep]


def find_nucleus(weights: npt.NDArray[np.floating], mass: float) -> BoolArray:
    """Marks the fewest heaviest weights that sum to `mass`; among equal weights the first ones. Never none."""
    ordered = np.sort(-weights)
    np.negative(ordered, out=ordered)
    whole = ordered.size // _BLOCK * _BLOCK
    sums = np.append(np.add.reduce(ordered[:whole].reshape(-1, _BLOCK), axis=1), np.add.reduce(ordered[whole:]))
    running = np.cumsum(sums, dtype=np.float64)
    block = min(int(np.searchsorted(running, mass)), (ordered.size - 1) // _BLOCK)
    before = float(running[block - 1]) if block else 0.0
    inside = np.cumsum(ordered[block * _BLOCK : (block + 1) * _BLOCK], dtype=np.float64)
    last = block * _BLOCK + min(int(np.searchsorted(inside, mass - before)), inside.size - 1)
    edge = ordered[last]
    keep: BoolArray = weights > edge
    if edge == 0.0:  # rounding put the mass above the sum
        return keep
    ties_kept = last + 1 - int(np.count_nonzero(keep))
    keep[np.flatnonzero(weights == edge)[:ties_kept]] = True
    return keep


def find_typical(weights: npt.NDArray[np.floating], mass: float) -> BoolArray:
    """Marks the weights whose information is nearest to the entropy, until `mass` is reached.

    Those that are as near as the last of them are marked too. Never none, and never a weight of zero.
    """
    share = weights.astype(np.float64)
    share /= share.sum()
    information = -np.log(share, where=share > 0.0, out=np.full(share.size, -np.inf))
    entropy = float(np.dot(share[share > 0.0], information[share > 0.0]))
    distance = np.abs(information - entropy)
    order = np.argsort(distance, kind="stable")
    last = min(int(np.searchsorted(np.cumsum(share[order]), mass)), order.size - 1)
    keep: BoolArray = (distance <= distance[order[last]]) & (share > 0.0)
    return keep


def pick(weights: npt.NDArray[np.floating], uniform: float) -> int:
    """Index of the weight that holds the `uniform`-th part of their sum. Never an index of weight zero."""
    running = np.cumsum(weights, dtype=np.float64)
    index = int(np.searchsorted(running, uniform * running[-1], side="right"))
    if index < running.size:
        return index
    return int(np.flatnonzero(weights)[-1])  # rounding put the target on the sum itself


def find_kept(
    row: Float32Array, peak: np.float32, kept: Truncation, scratch: Scratch
) -> tuple[Int64Array, npt.NDArray[np.floating]]:
    """Ids (ascending) of the tokens that may be drawn, and their weights relative to the likeliest one.

    Args:
        row: [V] logits after penalties and masks; not changed.
        peak: The row's largest entry; finite.
        kept: Temperature and truncation.
        scratch: Overwritten.
    """
    few = _narrow(row, peak, kept, scratch)
    if few is not None:
        return few
    ids = np.flatnonzero(scratch.row)
    return ids, scratch.row[ids]


def choose_token(row: Float32Array, peak: np.float32, kept: Truncation, uniform: float, scratch: Scratch) -> int:
    """Draws a token id from the tokens `find_kept` finds: the one that holds the `uniform`-th part of their weight."""
    few = _narrow(row, peak, kept, scratch)
    if few is not None:
        ids, weights = few
        return int(ids[pick(weights, uniform)])
    return _pick_from_blocks(scratch.blocks, scratch.sum_blocks(), uniform)


def _narrow(
    row: Float32Array, peak: np.float32, kept: Truncation, scratch: Scratch
) -> tuple[Int64Array, npt.NDArray[np.floating]] | None:
    """Ids and weights of the kept tokens if they are few; else None, and `scratch` holds all weights, 0 if not kept."""
    few = _narrow_to_likely(row, peak, kept, scratch)
    if kept.typical_p >= 1.0:
        return few
    if few is None:
        likely = np.flatnonzero(scratch.row)
        few = likely, scratch.row[likely]
    ids, weights = few
    keep = np.flatnonzero(find_typical(weights, kept.typical_p))
    return ids[keep], weights[keep]


def _narrow_to_likely(
    row: Float32Array, peak: np.float32, kept: Truncation, scratch: Scratch
) -> tuple[Int64Array, npt.NDArray[np.floating]] | None:
    ids: Int64Array
    weights: npt.NDArray[np.floating]
    if kept.top_k or kept.min_p > 0.0:
        ids, weights = _weigh_shortlist(row, peak, kept)
        mass = kept.top_p * float(weights.sum())
    else:
        scratch.fill_weights(row, peak, kept.inverse_temperature)
        if kept.top_p >= 1.0:
            return None
        total = float(scratch.sum_blocks()[-1])
        mass = kept.top_p * total
        ids, weights = find_top(scratch.row, _LIKELY_NUCLEUS)
        if float(weights.sum(dtype=np.float64)) < mass:
            # All lighter tokens together weigh less than half of what top-p drops, so the nucleus is among the rest.
            ids = np.flatnonzero(scratch.row >= 0.5 * (1.0 - kept.top_p) * total / row.size)
            if 2 * ids.size > row.size:
                np.multiply(scratch.row, find_nucleus(scratch.row, mass), out=scratch.row)
                return None
            weights = scratch.row[ids]
    if kept.top_p < 1.0:
        keep = np.flatnonzero(find_nucleus(weights, mass))
        ids, weights = ids[keep], weights[keep]
    return ids, weights


def _weigh_shortlist(row: Float32Array, peak: np.float32, kept: Truncation) -> tuple[Int64Array, Float64Array]:
    floor = float(peak) + math.log(kept.min_p) / kept.inverse_temperature if kept.min_p > 0.0 else -math.inf
    if kept.top_k:
        ids, values = find_top(row, kept.top_k)
        if kept.min_p > 0.0:
            keep = values >= floor
            ids, values = ids[keep], values[keep]
    else:
        ids = np.flatnonzero(row >= floor)
        values = row[ids]
    return ids, np.exp((values.astype(np.float64) - float(peak)) * kept.inverse_temperature)


def _pick_from_blocks(blocks: Float32Array, running: Float64Array, uniform: float) -> int:
    target = uniform * running[-1]
    block = int(np.searchsorted(running, target, side="right"))
    if block == running.size:
        block, target = int(np.flatnonzero(np.diff(running, prepend=0.0))[-1]), running[-1]
    before = float(running[block - 1]) if block else 0.0
    inside = (target - before) / (running[block] - before)
    return block * _BLOCK + pick(blocks[block], float(inside))

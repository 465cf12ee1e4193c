"""Drives a program without scheduler or engine: cuts sequences into steps and hands out scattered blocks."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from millpond.inference.ops.inputs import StepInputs

Run = Callable[[StepInputs], torch.Tensor]


def int32(values: Sequence[int]) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.int32)


def make_inputs(
    parts: Sequence[tuple[Sequence[int], int, Sequence[int]]], block_size: int, *, all_logits: bool
) -> StepInputs:
    """One step of several sequences; each part is (new tokens, their first position, the sequence's blocks)."""
    tokens, positions, slots, starts, lengths = [], [], [], [0], []
    for ids, first, blocks in parts:
        tokens += ids
        places = range(first, first + len(ids))
        positions += places
        slots += [blocks[p // block_size] * block_size + p % block_size for p in places]
        starts.append(len(tokens))
        lengths.append(first + len(ids))
    widest = max(len(blocks) for _, _, blocks in parts)
    tables = np.zeros((len(parts), widest), dtype=np.int32)
    for row, (_, _, blocks) in zip(tables, parts, strict=True):
        row[: len(blocks)] = blocks
    rows = range(len(tokens)) if all_logits else [s - 1 for s in starts[1:]]
    return StepInputs(
        int32(tokens),
        int32(positions),
        int32(slots),
        int32(starts),
        int32(lengths),
        tables,
        int32(list(rows)),
        block_size,
    )


def scattered_blocks(count: int, total: int, seed: int) -> list[int]:
    """Distinct block ids in no order."""
    return list(np.random.default_rng(seed).permutation(total)[:count])

"""Products: out[M, N] = epilogue(in[M, K] . weight[N, K]^T), rows from one stream to a prefill.

    python -m bench.kernels.linear [--shapes 576x1536 2048x8192] [--rows 1 4 16 64 512] [--dtype int8] [--isa amx]

Shapes are KxN. `gb_per_s` counts the stored weights once; enough copies of the matrix run in turn that none is found in
the cache.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Literal

import torch

from bench.kernels.harness import PAST_CACHE_BYTES, Trial, make_step, run
from millpond.inference.ops.int4 import Int4Weight, quantise_int4
from millpond.inference.ops.program import Buffer, Linear, Weight

ITEM_BITS = {"float32": 32, "bfloat16": 16, "int8": 8, "w8a8": 8, "int4": 4.5}  # int4: a scale of 16 bits for each 32


def _numbers(name: str, outputs: int, inputs: int) -> torch.Tensor:
    chance = torch.Generator().manual_seed(int(name))
    return torch.empty(outputs, inputs).normal_(std=inputs**-0.5, generator=chance)


def _weight(outputs: int, inputs: int, index: int) -> Weight:
    shape, name = (outputs, inputs), str(index)
    return Weight(name, shape, lambda: _numbers(name, *shape), ((name, shape),), lambda parts: parts[0])


class _FourBits:
    """A checkpoint with weights of 4 bits. A lone product counts as the logits, which are kept so only if stored so."""

    def __init__(self, outputs: int, inputs: int) -> None:
        self._shape = (outputs, inputs)

    def kind(self, name: str) -> Literal["float", "int4", "int4_min", "other"]:
        return "int4"

    def read_int4(self, name: str) -> Int4Weight:
        return quantise_int4(_numbers(name, *self._shape))


def sweep(args: argparse.Namespace, dtype: str) -> Iterator[Trial]:
    """A trial a shape and number of rows."""
    for text in args.shapes:
        inputs, outputs = map(int, text.split("x"))
        weight_bytes = int(inputs * outputs * ITEM_BITS[dtype] / 8)
        for rows in args.rows:
            copies = 1 if rows >= 256 else min(256, max(2, PAST_CACHE_BYTES // weight_bytes))
            source, out = Buffer("in", inputs, "act"), Buffer("out", outputs, "f32")
            ops = [Linear(source, out, _weight(outputs, inputs, i), None, "store_f32") for i in range(copies)]
            value = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(9))
            moved = weight_bytes + rows * (inputs * (4 if dtype == "float32" else 2) + outputs * 4)
            yield Trial(
                {"rows": rows, "inputs": inputs, "outputs": outputs},
                ops,
                (source, out),
                {source: value},
                out,
                make_step(1, rows),
                moved,
                2 * rows * inputs * outputs,
                stored=_FourBits(outputs, inputs) if dtype == "int4" else None,
            )


def extend(parser: argparse.ArgumentParser) -> None:
    """The sweep's own arguments."""
    parser.add_argument("--shapes", nargs="+", default=["576x1536", "2048x8192", "8192x2048"])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4, 16, 64, 512])


if __name__ == "__main__":
    run(__doc__, tuple(ITEM_BITS), sweep, extend)

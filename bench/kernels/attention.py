"""Attention over the paged cache: decode of few and many sequences, short and long contexts, and prefill.

    python -m bench.kernels.attention [--points 1x1x4096 64x1x256 1x512x0] [--heads 9x3x64] [--dtype bfloat16]

Points are sequences x new tokens x tokens before them; heads are query x key-value x dimension. `gb_per_s` counts keys
and values once, the queries and the result; operations count the part below the diagonal.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch

from bench.kernels.harness import Heads, Trial, make_step, run
from millpond.inference.ops.program import Attention, Buffer, Op, RopeKv

LAYERS = 8  # copies with a cache each


def sweep(args: argparse.Namespace, dtype: str) -> Iterator[Trial]:
    """A trial a point. The new tokens' keys and values are written first, untimed; older ones are zeros."""
    heads = Heads(*map(int, args.heads.split("x")))
    item = 4 if dtype == "float32" else 2
    for text in args.points:
        sequences, new, context = map(int, text.split("x"))
        rows = sequences * new
        qkv = Buffer("qkv", (heads.query + 2 * heads.kv) * heads.dim, "f32")
        q, out = Buffer("q", heads.query * heads.dim, "act"), Buffer("out", heads.query * heads.dim, "act")
        prepare: list[Op] = [RopeKv(qkv, q, i, None, None, 1e-5, heads.dim**-0.5, None) for i in range(LAYERS)]
        value = torch.randn(rows, qkv.width, generator=torch.Generator().manual_seed(2))
        keys = sequences * (context + new) * 2 * heads.kv * heads.dim * item
        pairs = sequences * (new * context + new * (new + 1) // 2)
        yield Trial(
            {"sequences": sequences, "new": new, "context": context},
            [Attention(q, out, i, 0, None) for i in range(LAYERS)],
            (qkv, q, out),
            {qkv: value},
            out,
            make_step(sequences, new, context),
            keys + 2 * rows * q.width * item,
            4 * pairs * heads.query * heads.dim,
            heads,
            prepare,
        )


def extend(parser: argparse.ArgumentParser) -> None:
    """The sweep's own arguments."""
    parser.add_argument("--points", nargs="+", default=["1x1x127", "1x1x4095", "16x1x127", "64x1x255", "1x512x0"])
    parser.add_argument("--heads", default="9x3x64")


if __name__ == "__main__":
    run(__doc__, ("float32", "bfloat16"), sweep, extend)

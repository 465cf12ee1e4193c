"""Rotation of queries and keys, and the write of keys and values into the paged cache.

    python -m bench.kernels.rope_kv [--points 1x1 64x1 1x2048] [--heads 9x3x64]

Points are sequences x new tokens. The check compares the rotated queries; what is in the cache is checked through
bench.kernels.attention and the tests. `gb_per_s` counts the projections read, queries, keys and values written.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

import torch

from bench.kernels.harness import Heads, Trial, make_step, run
from millpond.inference.ops.program import Buffer, RopeKv, RopeTable

LAYERS = 8


def sweep(args: argparse.Namespace, dtype: str) -> Iterator[Trial]:
    """A trial a point."""
    heads = Heads(*map(int, args.heads.split("x")))
    item = 4 if dtype == "float32" else 2
    for text in args.points:
        sequences, new = map(int, text.split("x"))
        rows = sequences * new
        qkv = Buffer("qkv", (heads.query + 2 * heads.kv) * heads.dim, "f32")
        q = Buffer("q", heads.query * heads.dim, "act")
        angles = torch.outer(torch.arange(float(new)), 0.8 ** torch.arange(heads.dim / 2))
        rope = RopeTable(torch.cat([angles.cos(), angles.sin()], dim=1).numpy(), heads.dim)
        value = torch.randn(rows, qkv.width, generator=torch.Generator().manual_seed(4))
        yield Trial(
            {"sequences": sequences, "new": new},
            [RopeKv(qkv, q, i, None, None, 1e-5, heads.dim**-0.5, rope) for i in range(LAYERS)],
            (qkv, q),
            {qkv: value},
            q,
            make_step(sequences, new),
            rows * qkv.width * (4 + item),
            heads=heads,
        )


def extend(parser: argparse.ArgumentParser) -> None:
    """The sweep's own arguments."""
    parser.add_argument("--points", nargs="+", default=["1x1", "64x1", "1x512", "1x2048"])
    parser.add_argument("--heads", default="9x3x64")


if __name__ == "__main__":
    run(__doc__, ("float32", "bfloat16"), sweep, extend)

"""RMS norm and layer norm of the residual stream.

    python -m bench.kernels.norm [--widths 576 2048] [--rows 1 64 2048]

`gb_per_s` counts the rows read and written; they come from the cache, as they do in a step, so the share of the
memory's roof can pass 100 % and matters for many rows only.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from functools import partial

import torch

from bench.kernels.harness import Trial, make_step, run
from millpond.inference.ops.program import Buffer, Norm, Weight

COPIES = 16


def sweep(args: argparse.Namespace, dtype: str) -> Iterator[Trial]:
    """A trial a kind, width and number of rows."""
    for width in args.widths:
        for rows in args.rows:
            for is_layer_norm in (False, True):
                source, out = Buffer("in", width, "f32"), Buffer("out", width, "act")
                weight = Weight("w", (width,), partial(torch.linspace, 0.5, 1.5, width))
                shift = Weight("b", (width,), partial(torch.linspace, -1, 1, width))
                bias = shift if is_layer_norm else None
                value = torch.randn(rows, width, generator=torch.Generator().manual_seed(3)) * 4
                yield Trial(
                    {"rows": rows, "width": width, "layer_norm": int(is_layer_norm)},
                    [Norm(source, out, weight, bias, 1e-5, is_layer_norm)] * COPIES,
                    (source, out),
                    {source: value},
                    out,
                    make_step(1, rows),
                    rows * width * (8 if dtype == "float32" else 6),
                )


def extend(parser: argparse.ArgumentParser) -> None:
    """The sweep's own arguments."""
    parser.add_argument("--widths", type=int, nargs="+", default=[576, 2048])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 64, 2048])


if __name__ == "__main__":
    run(__doc__, ("float32", "bfloat16"), sweep, extend)

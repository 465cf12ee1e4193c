"""Where a step's time goes: native seconds a step by op kind, with the bandwidth and arithmetic they amount to.

    python -m bench.engine.step_profile --model DIR_OR_GGUF [--dtype bfloat16] [--cache-dtype int8] [--threads 2]

Runs the native program alone, without scheduler, sampler or engine: decode of 1, 4, 16 and 64 sequences at a context of
128 tokens, and prefill of 512 and 2048 tokens. `weights GB/s` counts every parameter once a step.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict

import numpy as np

from millpond.inference.models import build_spec, make_program
from millpond.inference.ops.inputs import StepInputs
from millpond.inference.ops.native import NativeProgram, best_isa
from millpond.inference.ops.program import Linear, Program
from millpond.inference.weights import open_checkpoint
from millpond.inference.weights.gguf_int4 import stored_blocks

BLOCK = 32


def make_step(sequences: int, new: int, context: int) -> StepInputs:
    """A step in which each sequence has `context` tokens in the cache and computes `new` more."""
    width = -(-(context + new) // BLOCK)
    tables = np.arange(sequences * width, dtype=np.int32).reshape(sequences, width)
    places = np.arange(context, context + new)
    slots = tables[:, places // BLOCK] * BLOCK + places % BLOCK
    starts = np.arange(sequences + 1) * new
    return StepInputs(
        token_ids=np.random.default_rng(0).integers(100, 40000, sequences * new).astype(np.int32),
        positions=np.tile(places, sequences).astype(np.int32),
        slots=slots.reshape(-1).astype(np.int32),
        query_start=starts.astype(np.int32),
        context_len=np.full(sequences, context + new, np.int32),
        block_tables=tables,
        logit_rows=(starts[1:] - 1).astype(np.int32),
        block_size=BLOCK,
    )


def load_program(
    model: str, *, dtype: str, cache_dtype: str | None, isa: str, threads: int, max_tokens: int
) -> tuple[Program, NativeProgram]:
    """A model's program, packed into memory of its own, with a cache for all steps measured here."""
    checkpoint = open_checkpoint(model)
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    program = make_program(build_spec(checkpoint.config), checkpoint.read, shapes, 4096, stored_blocks(checkpoint))
    native = NativeProgram(
        program,
        dtype=dtype,
        cache_dtype=cache_dtype,
        isa=isa,
        num_threads=threads,
        num_blocks=512,
        block_size=BLOCK,
        max_tokens=max_tokens,
        max_logit_rows=64,
    )
    return program, native


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--cache-dtype", choices=["int8"])
    parser.add_argument("--steps", nargs="+", help='names of steps, e.g. "decode 16"; all without')
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--isa", default=best_isa())
    args = parser.parse_args()
    program, native = load_program(
        args.model, dtype=args.dtype, cache_dtype=args.cache_dtype, isa=args.isa, threads=args.threads, max_tokens=2048
    )
    kinds = [type(op).__name__ + (f" {op.weight.shape}" if isinstance(op, Linear) else "") for op in program.ops]
    for name, sequences, new, context in (
        ("decode 1", 1, 1, 128),
        ("decode 4", 4, 1, 128),
        ("decode 16", 16, 1, 128),
        ("decode 64", 64, 1, 128),
        ("decode 16 at 192", 16, 1, 191),
        ("decode 64 at 192", 64, 1, 191),
        ("decode 1 at 4000", 1, 1, 3999),
        ("prefill 512", 1, 512, 0),
        ("prefill 2048", 1, 2048, 0),
    ):
        if args.steps and name not in args.steps:
            continue
        step = make_step(sequences, new, context)
        runs = 3 if new > 1 else 30
        native.run(step)
        seconds = statistics.median(native.run(step)[1] for _ in range(runs))
        total = native.profile()
        for _ in range(runs):
            native.run(step)
        by_kind: dict[str, float] = defaultdict(float)
        for kind, value in zip(kinds, total / runs, strict=True):
            by_kind[kind] += value
        row = {
            "step": name,
            "ms": round(seconds * 1e3, 2),
            "tokens/s": round(sequences * new / seconds),
            "weights GB/s": round(native.weight_bytes / seconds / 1e9, 1),
            "ms by op": {k: round(v * 1e3, 2) for k, v in sorted(by_kind.items(), key=lambda kv: -kv[1])},
        }
        print(json.dumps(row))
    native.close()


if __name__ == "__main__":
    main()

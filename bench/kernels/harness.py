"""What the kernel benchmarks share: one op in a native program, checked against the reference, timed alone, and held
against the roof that was measured beside it.

An op is timed as the step runs it: all threads, a barrier after it, weights and cache rotated so that none stays in the
last cache unless the sweep says so. The roof is the read bandwidth for few rows and the multiply rate of the same
instruction set for many, whichever allows less.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bench.facts import describe_machine, read_bandwidth
from millpond.base.machine import read_machine
from millpond.inference.ops.inputs import StepInputs
from millpond.inference.ops.native import NativeProgram, best_isa
from millpond.inference.ops.native_abi import ISA_NAMES
from millpond.inference.ops.probe import multiply_rate
from millpond.inference.ops.program import Buffer, Op, Program, StoredTensors
from millpond.inference.ops.reference import ReferenceProgram

BLOCK = 32
PAST_CACHE_BYTES = 192 << 20  # weights of all copies together: more than the last cache of a small share of a machine


@dataclass(frozen=True, slots=True)
class Heads:
    """Shape of attention; ops without it take any."""

    query: int = 9
    kv: int = 3
    dim: int = 64


@dataclass(frozen=True, slots=True)
class Trial:
    """One point of a sweep.

    Attributes:
        ops: The op to time, in copies that share no weights or cache layer.
        given: What to put into input buffers before the check.
        out: The buffer the check compares.
        bytes_moved: Bytes one copy must read and write.
        operations: Multiplications and additions of one copy; 0 when they do not matter.
        stored: The checkpoint that the weights are said to come from, where its types matter.
    """

    shape: dict[str, int]
    ops: Sequence[Op]
    buffers: Sequence[Buffer]
    given: dict[Buffer, torch.Tensor]
    out: Buffer
    step: StepInputs
    bytes_moved: int
    operations: int = 0
    heads: Heads = Heads()
    prepare: Sequence[Op] = ()  # run before `ops`, not timed
    stored: StoredTensors | None = None


def make_step(sequences: int, new: int, context: int = 0) -> StepInputs:
    """A step in which each sequence has `context` tokens in the cache and computes `new` more."""
    width = -(-(context + new) // BLOCK)
    tables = np.random.default_rng(1).permutation(sequences * width).astype(np.int32).reshape(sequences, width)
    places = np.arange(context, context + new)
    slots = tables[:, places // BLOCK] * BLOCK + places % BLOCK
    starts = np.arange(sequences + 1) * new
    return StepInputs(
        token_ids=np.zeros(sequences * new, np.int32),
        positions=np.tile(places, sequences).astype(np.int32),
        slots=np.ascontiguousarray(slots.reshape(-1), dtype=np.int32),
        query_start=starts.astype(np.int32),
        context_len=np.full(sequences, context + new, np.int32),
        block_tables=tables,
        logit_rows=(starts[1:] - 1).astype(np.int32),
        block_size=BLOCK,
    )


def _program(trial: Trial, ops: Sequence[Op]) -> Program:
    layers = 1 + max((getattr(op, "layer", 0) for op in ops), default=0)
    heads = trial.heads
    longest = int(trial.step.positions.max()) + 1
    buffers, width = tuple(trial.buffers), trial.out.width
    return Program(
        tuple(ops), trial.out, layers, heads.query, heads.kv, heads.dim, width, longest, buffers, trial.stored
    )


def _native(trial: Trial, ops: Sequence[Op], dtype: str, isa: str, threads: int) -> NativeProgram:
    native = NativeProgram(
        _program(trial, ops),
        dtype=dtype,
        isa=isa,
        num_threads=threads,
        num_blocks=int(trial.step.block_tables.max()) + 1,
        block_size=BLOCK,
        max_tokens=trial.step.num_tokens,
        max_logit_rows=trial.step.num_tokens,
    )
    for buffer, value in trial.given.items():
        native.view(buffer)[: value.shape[0]] = value.to(native.view(buffer).dtype)
    return native


def largest_error(trial: Trial, dtype: str, isa: str, threads: int) -> float:
    """Largest difference from the reference, in units of the largest value there is."""
    ops = [*trial.prepare, trial.ops[0]]
    native = _native(trial, ops, dtype, isa, threads)
    slots = (int(trial.step.block_tables.max()) + 1) * BLOCK
    reference = ReferenceProgram(_program(trial, ops), dtype=dtype, num_slots=slots, deterministic=False)
    rows = trial.step.num_tokens
    for buffer in trial.given:
        reference.put(buffer, native.view(buffer)[:rows].clone())
    want = reference.run(trial.step).float()
    native.run(trial.step)
    got = native.view(trial.out)[:rows].float().clone()
    native.close()
    return float((got - want).abs().max() / want.abs().max().clamp_min(1e-6))


def seconds_of(trial: Trial, dtype: str, isa: str, threads: int, seconds: float = 0.4) -> float:
    """Median seconds of one copy of the op."""
    ops = [*trial.prepare, *trial.ops]
    native = _native(trial, ops, dtype, isa, threads)
    native.run(trial.step)
    total = native.profile()
    samples: list[float] = []
    spent = 0.0
    while spent < seconds or len(samples) < 3:
        before = total.copy()
        native.run(trial.step)
        took = total - before
        samples.append(float(took[len(trial.prepare) :].sum()) / len(trial.ops))
        spent += float(took.sum())
    native.close()
    return statistics.median(samples)


def measure(trial: Trial, dtype: str, isa: str, threads: int, multiplies: float) -> dict[str, Any]:
    """A row of the result: check, time, rates and share of the roof."""
    read = read_bandwidth(threads, repeats=2)
    took = seconds_of(trial, dtype, isa, threads)
    least = max(trial.bytes_moved / read, trial.operations / multiplies if multiplies else 0.0)
    return {
        **trial.shape,
        "dtype": dtype,
        "isa": isa,
        "error": round(largest_error(trial, dtype, isa, threads), 6),
        "us": round(took * 1e6, 1),
        "gb_per_s": round(trial.bytes_moved / took / 1e9, 2),
        "gops": round(trial.operations / took / 1e9, 1),
        "read_gb_per_s": round(read / 1e9, 2),
        "roof_percent": round(100 * least / took, 1),
        "bound": "memory" if least == trial.bytes_moved / read else "multiply",
    }


def run(
    about: str | None,
    dtypes: Sequence[str],
    sweep: Callable[[argparse.Namespace, str], Iterator[Trial]],
    extend: Callable[[argparse.ArgumentParser], None] = lambda _: None,
) -> None:
    """The command line of a kernel benchmark: prints a JSON line a point, and fails when a check does."""
    usable = ISA_NAMES[: ISA_NAMES.index(best_isa()) + 1]
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", nargs="+", default=list(dtypes), choices=dtypes)
    parser.add_argument("--isa", nargs="+", default=list(usable), choices=usable)
    parser.add_argument("--threads", type=int, default=read_machine().usable_cores)
    parser.add_argument("--tolerance", type=float, default=2e-2)
    parser.add_argument("--json", type=Path)
    extend(parser)
    args = parser.parse_args()
    rows = []
    for dtype in args.dtype:
        for isa in args.isa:
            multiplies = multiply_rate(dtype, isa, args.threads)
            for trial in sweep(args, dtype):
                rows.append(measure(trial, dtype, isa, args.threads, multiplies))
                print(json.dumps(rows[-1]), flush=True)
    if args.json:
        args.json.write_text(json.dumps({"machine": describe_machine(), "rows": rows}, indent=2) + "\n")
    wrong = [row for row in rows if row["error"] > args.tolerance]
    if wrong:
        raise SystemExit(f"{len(wrong)} of {len(rows)} points are off the reference: {json.dumps(wrong[0])}")

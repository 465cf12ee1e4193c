"""How fast this machine multiplies: one large product through the native program, per dtype and instruction set.

Beside the read bandwidth this is the other roof over a step. Knows no model. Called by the doctor and by the kernel
benchmarks.
"""

from __future__ import annotations

import numpy as np
import torch

from millpond.inference.ops.inputs import StepInputs
from millpond.inference.ops.native import NativeProgram
from millpond.inference.ops.program import Buffer, Linear, Program, Weight

ROWS, INPUTS, OUTPUTS = 512, 1024, 1024  # the operands fit into the second-level cache of two cores
PROBED_DTYPES = ("float32", "bfloat16", "int8", "w8a8")
_BLOCK = 32


def multiply_rate(dtype: str, isa: str, threads: int, seconds: float = 0.25) -> float:
    """Multiplications and additions a second of a product with `dtype` weights, the best of several runs.

    Raises:
        ConfigError: The native library is missing or cannot use `isa` here.
    """
    source, out = Buffer("in", INPUTS, "act"), Buffer("out", OUTPUTS, "f32")
    value = torch.linspace(-1, 1, INPUTS * OUTPUTS).view(OUTPUTS, INPUTS)
    product = Linear(source, out, Weight("probe", (OUTPUTS, INPUTS), lambda: value), None, "store_f32")
    program = Program((product,), out, 1, 1, 1, _BLOCK, OUTPUTS, ROWS, (source, out))
    native = NativeProgram(
        program,
        dtype=dtype,
        isa=isa,
        num_threads=threads,
        num_blocks=2,
        block_size=_BLOCK,
        max_tokens=ROWS,
        max_logit_rows=1,
    )
    try:
        native.view(source)[:] = 0.5
        best, spent, step = float("inf"), 0.0, _rows_step()
        while spent < seconds:
            took = native.run(step)[1]
            best, spent = min(best, took), spent + took
    finally:
        native.close()
    return 2 * ROWS * INPUTS * OUTPUTS / best


def _rows_step() -> StepInputs:
    """A step of ROWS tokens, for a program that looks at nothing but their number."""
    zeros = np.zeros(ROWS, np.int32)
    return StepInputs(
        token_ids=zeros,
        positions=zeros,
        slots=zeros,
        query_start=np.array([0, ROWS], np.int32),
        context_len=np.array([ROWS], np.int32),
        block_tables=np.zeros((1, ROWS // _BLOCK), np.int32),
        logit_rows=zeros[:1],
        block_size=_BLOCK,
    )

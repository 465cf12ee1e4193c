"""Every native op alone against its reference: odd shapes, every epilogue, every ISA, ordinary and hostile values."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from millpond.inference.models.blocks import make_alibi_slopes
from millpond.inference.ops.inputs import StepInputs
from millpond.inference.ops.native import NativeProgram, best_isa
from millpond.inference.ops.native_abi import EPILOGUES, ISA_NAMES
from millpond.inference.ops.program import (
    GATED_EPILOGUES,
    Attention,
    Buffer,
    Embed,
    Linear,
    Norm,
    Op,
    Program,
    RopeKv,
    RopeTable,
    Weight,
)
from millpond.inference.ops.reference import ReferenceProgram
from tests.support.steps import int32, make_inputs

ISAS = ISA_NAMES[: ISA_NAMES.index(best_isa()) + 1] if best_isa() != "none" else ()
DTYPES = ("float32", "bfloat16", "int8", "w8a8", "int4")
NUM_BLOCKS, BLOCK = 16, 32
HEADS, GROUPS, DIM = 6, 2, 64
# Largest difference in units of the values' own spread.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2, "int8": 2e-2, "w8a8": 2e-2, "int4": 2e-2}


def weight(*shape: int, seed: int = 1, scale: float = 1.0) -> Weight:
    value = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale
    return Weight(f"w{seed}", shape, lambda: value)


def rows_step(num_rows: int) -> StepInputs:
    """A step of `num_rows` tokens of one sequence; its logit rows are the first of them."""
    blocks = list(range(NUM_BLOCKS))
    return make_inputs([([3] * num_rows, 0, blocks)], BLOCK, all_logits=True)


def run_both(
    ops: Sequence[Op],
    buffers: Sequence[Buffer],
    given: dict[Buffer, torch.Tensor],
    out: Buffer,
    step: StepInputs,
    *,
    isa: str,
    dtype: str,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The output buffer by the native library and by the reference."""
    program = Program(tuple(ops), out, 1, HEADS, GROUPS, DIM, 64, 512, tuple(buffers))
    reference = ReferenceProgram(program, dtype=dtype, num_slots=NUM_BLOCKS * BLOCK, deterministic=False)
    native = NativeProgram(
        program,
        dtype=dtype,
        isa=isa,
        num_threads=2,
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK,
        max_tokens=128,
        max_logit_rows=128,
    )
    rows = step.num_tokens
    for buffer, value in given.items():
        native.view(buffer)[:rows] = value.to(native.view(buffer).dtype)
        reference.put(buffer, native.view(buffer)[:rows].clone())
    want = reference.run(step)
    native.run(step)
    got = native.view(out)[:rows].clone()
    native.close()
    return got.float(), want.float()


def assert_close(got: torch.Tensor, want: torch.Tensor, dtype: str) -> None:
    assert got.shape == want.shape
    assert torch.equal(got.isnan(), want.isnan())
    assert torch.equal(got.isposinf(), want.isposinf())
    assert torch.equal(got.isneginf(), want.isneginf())
    finite = want.isfinite()
    spread = want[finite].abs().max().clamp_min(1e-6) if finite.any() else torch.tensor(1.0)
    assert ((got - want)[finite].abs() <= TOLERANCE[dtype] * spread).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_linear_equals_reference_with_every_epilogue(epilogue: str, isa: str, dtype: str) -> None:
    for rows, outputs, inputs in ((1, 48, 40), (5, 16, 33), (17, 100, 96), (33, 64, 576), (70, 31, 7)):
        is_gated = epilogue in GATED_EPILOGUES
        inp = Buffer("in", inputs, "act")
        out = Buffer("out", outputs, "f32" if epilogue in ("store_f32", "add_f32") else "act")
        stacked = 2 * outputs if is_gated else outputs
        w = weight(stacked, inputs, scale=inputs**-0.5)
        op = Linear(inp, out, w, weight(stacked, seed=2), epilogue)  # type: ignore[arg-type]
        given = {inp: torch.randn(rows, inputs), out: torch.randn(rows, outputs)}
        got, want = run_both([op], [inp, out], given, out, rows_step(rows), isa=isa, dtype=dtype)
        assert_close(got, want, dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("value", [float("inf"), float("nan"), 1e-42, 3e38])
def test_linear_keeps_a_hostile_value_in_its_row(value: float, isa: str, dtype: str) -> None:
    inp, out = Buffer("in", 64, "act"), Buffer("out", 48, "f32")
    x = torch.randn(20, 64)
    x[7, 3] = value
    op = Linear(inp, out, weight(48, 64, scale=0.125), None, "store_f32")
    got, want = run_both([op], [inp, out], {inp: x}, out, rows_step(20), isa=isa, dtype=dtype)
    others = [i for i in range(20) if i != 7]
    assert_close(got[others], want[others], dtype)
    assert torch.equal(got[7].isfinite(), want[7].isfinite())


@pytest.mark.parametrize("is_layer_norm", [False, True])
@pytest.mark.parametrize("output", ["act", "f32", "add_f32"])
@pytest.mark.parametrize("isa", ISAS)
def test_norm_equals_reference(isa: str, output: str, is_layer_norm: bool) -> None:
    for dtype, rows, width in itertools.product(("float32", "bfloat16"), (1, 3, 40), (16, 96)):
        inp, out = Buffer("in", width, "f32"), Buffer("out", width, "act" if output == "act" else "f32")
        bias = weight(width, seed=3) if is_layer_norm else None
        op = Norm(inp, out, weight(width, seed=2), bias, 1e-5, is_layer_norm, output)  # type: ignore[arg-type]
        given = {inp: torch.randn(rows, width) * 5 + 1, out: torch.randn(rows, width)}
        got, want = run_both([op], [inp, out], given, out, rows_step(rows), isa=isa, dtype=dtype)
        assert_close(got, want, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
def test_embed_equals_reference(isa: str, dtype: str) -> None:
    for vocabulary, width in ((64, 96), (70, 48)):
        table = weight(vocabulary, width)
        out, head = Buffer("out", width, "f32"), Buffer("head", vocabulary, "f32")
        act = Buffer("act", width, "act")
        ops = [Embed(out, table, 1.5, weight(256, width, seed=4)), Linear(act, head, table, None, "store_f32")]
        ids = [i * 7 % vocabulary for i in range(40)]
        step = make_inputs([(ids, 0, [0, 1])], BLOCK, all_logits=True)
        given = {act: torch.randn(40, width)}
        program_out = run_both(ops, [out, act, head], given, head, step, isa=isa, dtype=dtype)
        assert_close(*program_out, dtype)
        got, want = run_both(ops[::-1], [act, head, out], given, out, step, isa=isa, dtype=dtype)
        assert_close(got, want, dtype)


def attention_inputs(lengths: Sequence[int]) -> StepInputs:
    """Fresh sequences of these lengths, their blocks dealt round-robin so that none is contiguous."""
    blocks: list[list[int]] = [[] for _ in lengths]
    free = iter(np.random.default_rng(5).permutation(NUM_BLOCKS).tolist())
    for mine, length in zip(blocks, lengths, strict=True):
        mine.extend(next(free) for _ in range(-(-length // BLOCK)))
    return make_inputs([([3] * n, 0, b) for n, b in zip(lengths, blocks, strict=True)], BLOCK, all_logits=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("window", "has_alibi", "has_norm"), [(0, False, False), (20, False, True), (0, True, False), (50, True, True)]
)
def test_rope_and_attention_equal_reference(isa: str, dtype: str, window: int, has_alibi: bool, has_norm: bool) -> None:
    qkv = Buffer("qkv", (HEADS + 2 * GROUPS) * DIM, "f32")
    q, out = Buffer("q", HEADS * DIM, "act"), Buffer("out", HEADS * DIM, "act")
    angles = torch.outer(torch.arange(128.0), 0.7 ** torch.arange(24.0))
    rope = RopeTable(torch.cat([angles.cos(), angles.sin()], dim=1), 48)
    norms = (weight(DIM, seed=6), weight(DIM, seed=7)) if has_norm else (None, None)
    ops: list[Op] = [
        RopeKv(qkv, q, 0, *norms, 1e-5, DIM**-0.5, rope),
        Attention(q, out, 0, window, make_alibi_slopes(HEADS) if has_alibi else None),
    ]
    step = attention_inputs((1, 40, 31, 50))
    given = {qkv: torch.randn(step.num_tokens, qkv.width) * 2}
    got, want = run_both(ops, [qkv, q, out], given, out, step, isa=isa, dtype=dtype)
    assert_close(got, want, dtype)


@pytest.mark.parametrize("isa", ISAS)
def test_attention_survives_scores_that_overflow_the_exponential(isa: str) -> None:
    qkv = Buffer("qkv", (HEADS + 2 * GROUPS) * DIM, "f32")
    q, out = Buffer("q", HEADS * DIM, "act"), Buffer("out", HEADS * DIM, "act")
    ops: list[Op] = [RopeKv(qkv, q, 0, None, None, 1e-5, 1.0, None), Attention(q, out, 0, 0, None)]
    step = attention_inputs((64,))
    got, want = run_both(
        ops, [qkv, q, out], {qkv: torch.randn(64, qkv.width) * 60}, out, step, isa=isa, dtype="float32"
    )
    assert got.isfinite().all()
    assert_close(got, want, "float32")


def test_a_token_id_outside_the_vocabulary_reads_no_foreign_memory() -> None:
    table, out = weight(64, 32), Buffer("out", 32, "f32")
    program = Program((Embed(out, table),), out, 1, HEADS, GROUPS, DIM, 32, 512, (out,))
    native = NativeProgram(
        program,
        dtype="float32",
        isa=ISAS[-1],
        num_threads=1,
        num_blocks=2,
        block_size=BLOCK,
        max_tokens=4,
        max_logit_rows=4,
    )
    step = make_inputs([([1 << 30, 63], 0, [0])], BLOCK, all_logits=True)
    native.run(step)
    assert torch.equal(native.view(out)[0], native.view(out)[1])
    assert step.token_ids.dtype == int32([0]).dtype
    native.close()

"""The int8 KV cache alone: rope + write + attention against the reference, bounds of its error, and hostile values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch

from millpond.inference.models.blocks import make_alibi_slopes
from millpond.inference.ops.inputs import StepInputs
from millpond.inference.ops.native import NativeProgram, best_isa
from millpond.inference.ops.native_abi import ISA_NAMES
from millpond.inference.ops.program import Attention, Buffer, Op, Program, RopeKv, RopeTable
from millpond.inference.ops.quantise import rotate
from millpond.inference.ops.reference import ReferenceProgram
from tests.support.steps import make_inputs

ISAS = ISA_NAMES[: ISA_NAMES.index(best_isa()) + 1] if best_isa() != "none" else ()
RUNNERS = [*ISAS, "reference"]
HEADS, GROUPS = 6, 2
NUM_TOKENS = 1024  # of the cache


class Layer:
    """One layer's rope, cache and attention, [T, (H+2G)D] -> [T, HD]."""

    def __init__(self, dim: int, block_size: int, *, window: int = 0, has_alibi: bool = False, q_scale: float = 0.1):
        self.dim, self.block_size = dim, block_size
        self.qkv = Buffer("qkv", (HEADS + 2 * GROUPS) * dim, "f32")
        self.q, self.out = Buffer("q", HEADS * dim, "act"), Buffer("out", HEADS * dim, "act")
        angles = torch.outer(torch.arange(512.0), 0.7 ** torch.arange(8.0))
        rope = RopeTable(torch.cat([angles.cos(), angles.sin()], dim=1), 16)
        slopes = make_alibi_slopes(HEADS) if has_alibi else None
        self.ops: tuple[Op, ...] = (
            RopeKv(self.qkv, self.q, 0, None, None, 1e-5, q_scale, rope),
            Attention(self.q, self.out, 0, window, slopes),
        )

    def inputs(self, lengths: Sequence[int], first: int = 0) -> StepInputs:
        """`lengths` tokens of each sequence from position `first` on, in blocks dealt at random."""
        free = iter(np.random.default_rng(5).permutation(NUM_TOKENS // self.block_size).tolist())
        tables = [[next(free) for _ in range(-(-(first + n) // self.block_size))] for n in lengths]
        return make_inputs(
            [([3] * n, first, t) for n, t in zip(lengths, tables, strict=True)], self.block_size, all_logits=True
        )

    def run(self, steps: Sequence[tuple[StepInputs, torch.Tensor]], runner: str, dtype: str) -> list[torch.Tensor]:
        """What each step gives, one after the other over one cache."""
        buffers = (self.qkv, self.q, self.out)
        program = Program(self.ops, self.out, 1, HEADS, GROUPS, self.dim, 64, 512, buffers)
        if runner == "reference":
            slow = ReferenceProgram(program, dtype=dtype, num_slots=NUM_TOKENS, deterministic=False, cache_dtype="int8")
            results = []
            for inputs, value in steps:
                slow.put(self.qkv, value)
                results.append(slow.run(inputs).float())
            return results
        native = NativeProgram(
            program,
            dtype=dtype,
            cache_dtype="int8",
            isa=runner,
            num_threads=2,
            num_blocks=NUM_TOKENS // self.block_size,
            block_size=self.block_size,
            max_tokens=512,
            max_logit_rows=512,
        )
        results = []
        for inputs, value in steps:
            native.view(self.qkv)[: inputs.num_tokens] = value
            native.run(inputs)
            results.append(native.view(self.out)[: inputs.num_tokens].float().clone())
        native.close()
        return results

    def values(self, qkv: torch.Tensor) -> torch.Tensor:
        """The values that each query head reads, [T, H, D]."""
        v = qkv.view(-1, HEADS + 2 * GROUPS, self.dim)[:, HEADS + GROUPS :]
        return v.repeat_interleave(HEADS // GROUPS, dim=1)

    def random(self, num_tokens: int, seed: int = 0) -> torch.Tensor:
        return torch.randn(num_tokens, self.qkv.width, generator=torch.Generator().manual_seed(seed)) * 2


def assert_close(got: torch.Tensor, want: torch.Tensor) -> None:
    # Probabilities have 7 or 8 bits here, exact ones in the reference.
    assert (got - want).abs().max() <= 2e-2 * want.abs().max()
    assert (got - want).abs().mean() <= 3e-3 * want.abs().max()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("dim", "block_size", "window", "has_alibi"),
    [(64, 32, 0, False), (32, 64, 20, False), (96, 128, 0, True), (128, 32, 50, True), (256, 64, 0, False)],
)
def test_attention_over_an_int8_cache_equals_reference(
    isa: str, dtype: str, dim: int, block_size: int, window: int, has_alibi: bool
) -> None:
    layer = Layer(dim, block_size, window=window, has_alibi=has_alibi)
    first = layer.inputs((1, 40, 31, 140))
    then = layer.inputs((1, 1), first=140)
    steps = [(first, layer.random(first.num_tokens)), (then, layer.random(2, seed=1))]
    for got, want in zip(layer.run(steps, isa, dtype), layer.run(steps, "reference", dtype), strict=True):
        assert_close(got, want)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("size", [1e-28, 1e-3, 1.0, 1e4, 1e37])
def test_a_token_alone_reads_its_values_within_half_a_step(size: float, runner: str, dtype: str) -> None:
    layer = Layer(64, 32)
    inputs = layer.inputs([1] * 15)
    qkv = layer.random(15)
    qkv[:, (HEADS + GROUPS) * 64 :] *= size
    (got,) = layer.run([(inputs, qkv)], runner, dtype)
    want = layer.values(qkv)
    # Codes are of rotated rows: a rotation keeps lengths, so 64 errors of half a step at most are that long together.
    rotated = rotate(want) / 8
    half = rotated.abs().amax(dim=-1) / 254
    rounding = 1e-5 if dtype == "float32" else 2**-8  # of the result
    error = (got.view(want.shape) / size - want / size).norm(dim=-1)
    assert (error <= 8 * half / size + rounding * (want / size).norm(dim=-1)).all()


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("size", [0.0, 1e-42, 1e-31])
def test_values_too_small_for_a_scale_count_as_zero(size: float, runner: str) -> None:
    layer = Layer(64, 32)
    qkv = layer.random(40)
    qkv[:, (HEADS + GROUPS) * 64 :] = size
    (got,) = layer.run([(layer.inputs((40,)), qkv)], runner, "float32")
    assert (got == 0).all()


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("offset", [0, GROUPS])  # of keys, of values
def test_a_value_that_is_not_finite_shows_where_it_is_seen(offset: int, runner: str) -> None:
    layer = Layer(64, 32)
    qkv = layer.random(40)
    qkv[0, (HEADS + offset) * 64 + 5] = float("inf")
    (got,) = layer.run([(layer.inputs((40,)), qkv)], runner, "float32")
    assert got.view(40, GROUPS, -1)[:, 0].isnan().all()
    assert got.view(40, GROUPS, -1)[:, 1].isfinite().all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("in_keys", [True, False])
@pytest.mark.parametrize("value", [float("inf"), -float("inf"), float("nan")])
def test_a_value_that_is_not_finite_shows_in_every_row_that_sees_it_and_in_no_other(
    value: float, in_keys: bool, isa: str, dtype: str
) -> None:
    layer = Layer(64, 32, window=30)
    inputs = layer.inputs((100, 50))
    qkv = layer.random(150)
    (clean,) = layer.run([(inputs, qkv)], isa, dtype)
    poisoned = qkv.clone()
    group = 1
    poisoned[40, (HEADS + group + (0 if in_keys else GROUPS)) * 64 + 5] = value
    (got,) = layer.run([(inputs, poisoned)], isa, dtype)
    got, clean = got.view(150, HEADS, 64), clean.view(150, HEADS, 64)
    sees = torch.zeros(150, HEADS, dtype=torch.bool)
    sees[40:70, group * HEADS // GROUPS :] = True
    assert got[sees].isnan().all()
    assert torch.equal(got[~sees], clean[~sees])


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_scores_that_overflow_the_exponential_leave_finite_results(isa: str, dtype: str) -> None:
    layer = Layer(64, 32, q_scale=1.0)
    inputs, qkv = layer.inputs((64,)), layer.random(64) * 30
    (got,) = layer.run([(inputs, qkv)], isa, dtype)
    assert got.isfinite().all()
    assert (got.abs() <= qkv.abs().max() * 1.01).all()


@pytest.mark.parametrize("block_size", [32, 64, 128])
@pytest.mark.parametrize("isa", ISAS)
def test_what_lies_behind_the_last_token_is_not_read(isa: str, block_size: int) -> None:
    layer = Layer(64, block_size)
    short, full = layer.inputs((40,)), layer.inputs((128,))
    qkv, poison = layer.random(40), torch.full((128, layer.qkv.width), float("nan"))
    want, _, got = layer.run([(short, qkv), (full, poison), (short, qkv)], isa, "bfloat16")
    assert want.isfinite().all()
    assert torch.equal(got, want)

"""Attention over long contexts: the same bits whoever computes which part, and the reference's numbers."""

from __future__ import annotations

import pytest
import torch

from millpond.inference.ops.inputs import StepInputs
from millpond.inference.ops.native import NativeProgram, best_isa
from millpond.inference.ops.native_abi import ISA_NAMES
from millpond.inference.ops.program import Attention, Buffer, Program, RopeKv
from millpond.inference.ops.reference import ReferenceProgram
from tests.support.steps import make_inputs

ISAS = ISA_NAMES[: ISA_NAMES.index(best_isa()) + 1] if best_isa() != "none" else ()
HEADS, GROUPS, DIM, BLOCK = 6, 2, 64, 32
LENGTH = 1500  # of the first sequence: three parts of 512 keys
OTHERS = 9  # with these there are tiles enough, and none is shared out
NUM_TOKENS = 2048

QKV = Buffer("qkv", (HEADS + 2 * GROUPS) * DIM, "f32")
Q, OUT = Buffer("q", HEADS * DIM, "act"), Buffer("out", HEADS * DIM, "act")


def program_of(window: int) -> Program:
    ops = (RopeKv(QKV, Q, 0, None, None, 1e-5, 0.3, None), Attention(Q, OUT, 0, window, None))
    return Program(ops, OUT, 1, HEADS, GROUPS, DIM, 64, NUM_TOKENS, (QKV, Q, OUT))


def inputs_of(first: int, count: int, others: int = 0) -> StepInputs:
    """`count` tokens of the long sequence from `first` on, and a new token of each of some others."""
    blocks = -(-LENGTH // BLOCK)
    entries = [([1] * count, first, list(range(-(-(first + count) // BLOCK))))]
    entries += [([1], 0, [blocks + i]) for i in range(others)]
    return make_inputs(entries, BLOCK, all_logits=True)


def rows_of(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, QKV.width, generator=torch.Generator().manual_seed(seed))


class Native:
    """A program on two threads whose cache holds all but the last token of the long sequence."""

    def __init__(self, window: int, isa: str, dtype: str, cache_dtype: str | None) -> None:
        self._program = NativeProgram(
            program_of(window),
            dtype=dtype,
            cache_dtype=cache_dtype,
            isa=isa,
            num_threads=2,
            num_blocks=NUM_TOKENS // BLOCK,
            block_size=BLOCK,
            max_tokens=NUM_TOKENS,
            max_logit_rows=NUM_TOKENS,
        )
        self.run(inputs_of(0, LENGTH - 1), rows_of(LENGTH - 1, seed=0))

    def run(self, inputs: StepInputs, qkv: torch.Tensor) -> torch.Tensor:
        self._program.view(QKV)[: inputs.num_tokens] = qkv
        self._program.run(inputs)
        return self._program.view(OUT)[: inputs.num_tokens].float().clone()

    def close(self) -> None:
        self._program.close()


@pytest.mark.parametrize("window", [0, 700])
@pytest.mark.parametrize(("dtype", "cache_dtype"), [("float32", None), ("bfloat16", None), ("bfloat16", "int8")])
@pytest.mark.parametrize("isa", ISAS)
def test_a_row_has_the_same_bits_alone_in_a_crowd_and_in_prefill(
    isa: str, dtype: str, cache_dtype: str | None, window: int
) -> None:
    native = Native(window, isa, dtype, cache_dtype)
    last = rows_of(1, seed=1)
    alone = native.run(inputs_of(LENGTH - 1, 1), last)[0]
    again = native.run(inputs_of(LENGTH - 1, 1), last)[0]
    crowd = torch.cat([last, rows_of(OTHERS, seed=2)])
    in_crowd = native.run(inputs_of(LENGTH - 1, 1, OTHERS), crowd)[0]
    everything = torch.cat([rows_of(LENGTH - 1, seed=0), last])
    in_prefill = native.run(inputs_of(0, LENGTH), everything)[-1]
    native.close()
    assert torch.equal(alone, again)
    assert torch.equal(alone, in_crowd)
    assert torch.equal(alone, in_prefill)


@pytest.mark.parametrize("window", [0, 700])
@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-5), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("isa", ISAS)
def test_a_long_context_shared_by_threads_equals_reference(isa: str, dtype: str, bound: float, window: int) -> None:
    native = Native(window, isa, dtype, None)
    slow = ReferenceProgram(program_of(window), dtype="float32", num_slots=NUM_TOKENS, deterministic=False)
    slow.put(QKV, rows_of(LENGTH - 1, seed=0))
    slow.run(inputs_of(0, LENGTH - 1))
    last = rows_of(1, seed=1)
    slow.put(QKV, last)
    want = slow.run(inputs_of(LENGTH - 1, 1))
    got = native.run(inputs_of(LENGTH - 1, 1), last)
    native.close()
    assert (got - want).abs().max() <= bound * want.abs().max()


@pytest.mark.parametrize("growth", [3.0, 40.0, 1e4])
@pytest.mark.parametrize(("dtype", "cache_dtype"), [("float32", None), ("bfloat16", None), ("bfloat16", "int8")])
@pytest.mark.parametrize("isa", ISAS)
def test_keys_that_grow_through_a_context_leave_it_right(
    isa: str, dtype: str, cache_dtype: str | None, growth: float
) -> None:
    rows = rows_of(400, seed=3)
    keys = rows[:, HEADS * DIM : (HEADS + GROUPS) * DIM]
    keys[128:256] *= growth  # the second chunk's scores rise far above the first's, the third's fall back
    keys[300] *= growth * 10
    native = Native(0, isa, dtype, cache_dtype)
    slow = ReferenceProgram(
        program_of(0), dtype=dtype, num_slots=NUM_TOKENS, deterministic=False, cache_dtype=cache_dtype
    )
    slow.put(QKV, rows)
    want = slow.run(inputs_of(0, 400)).float()
    got = native.run(inputs_of(0, 400), rows)
    native.close()
    assert torch.isfinite(got).all()
    near = (got - want).abs().amax(1) <= 4e-2 * want.abs().max()
    assert near.float().mean() >= 0.98  # where two huge scores nearly tie, a rounded query decides

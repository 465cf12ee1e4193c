"""Products as big steps cut them, and the peaks of logits: what the shapes of test_ops.py are too small for."""

from __future__ import annotations

import pytest
import torch

from millpond.inference.ops.native import NativeProgram
from millpond.inference.ops.program import Buffer, Linear, Program
from tests.ops.test_ops import (
    BLOCK,
    DIM,
    DTYPES,
    GROUPS,
    HEADS,
    ISAS,
    NUM_BLOCKS,
    assert_close,
    rows_step,
    run_both,
    weight,
)
from tests.support.steps import make_inputs


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(100, 2320, 320), (33, 64, 1000), (128, 4128, 48)])
def test_linear_of_many_rows_and_long_sums_equals_reference(
    rows: int, inputs: int, outputs: int, isa: str, dtype: str
) -> None:
    source, out = Buffer("in", inputs, "act"), Buffer("out", outputs, "f32")
    op = Linear(source, out, weight(outputs, inputs, scale=inputs**-0.5), None, "store_f32")
    value = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(3))
    got, want = run_both([op], [source, out], {source: value}, out, rows_step(rows), isa=isa, dtype=dtype)
    assert_close(got, want, dtype)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "w8a8", "int4"])
@pytest.mark.parametrize("isa", ISAS)
def test_a_row_of_a_product_does_not_depend_on_how_many_rows_there_are(isa: str, dtype: str) -> None:
    inputs, outputs = 2320, 96
    source, out = Buffer("in", inputs, "act"), Buffer("out", outputs, "f32")
    op = Linear(source, out, weight(outputs, inputs), None, "store_f32")
    value = torch.randn(100, inputs, generator=torch.Generator().manual_seed(4))
    whole, _ = run_both([op], [source, out], {source: value}, out, rows_step(100), isa=isa, dtype=dtype)
    for count in (1, 7, 20):
        alone, _ = run_both([op], [source, out], {source: value[:count]}, out, rows_step(count), isa=isa, dtype=dtype)
        assert torch.equal(alone, whole[:count])


def product_program(
    op: Linear, buffers: tuple[Buffer, Buffer], isa: str, *, max_tokens: int, max_logit_rows: int
) -> NativeProgram:
    """A program of one product, whose result counts as its logits."""
    program = Program((op,), op.out, 1, HEADS, GROUPS, DIM, op.out.width, 512, buffers)
    return NativeProgram(
        program,
        dtype="float32",
        isa=isa,
        num_threads=2,
        num_blocks=NUM_BLOCKS,
        block_size=BLOCK,
        max_tokens=max_tokens,
        max_logit_rows=max_logit_rows,
    )


def logits_program(vocabulary: int, isa: str) -> tuple[NativeProgram, Buffer]:
    """A program whose logits are its input: the identity as a matrix, cut to `vocabulary` columns."""
    source, logits = Buffer("in", vocabulary, "act", "logit"), Buffer("logits", vocabulary, "f32", "logit")
    identity = weight(vocabulary, vocabulary)
    identity = type(identity)("eye", identity.shape, lambda: torch.eye(vocabulary))
    op = Linear(source, logits, identity, None, "store_f32")
    return product_program(op, (source, logits), isa, max_tokens=64, max_logit_rows=64), source


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", [1, 40])
def test_peaks_are_the_first_largest_columns_and_see_no_padding(isa: str, rows: int) -> None:
    vocabulary = 331  # the last panel has 11 columns; what pads it is 0, above every value here
    native, source = logits_program(vocabulary, isa)
    values = torch.randint(-40, -1, (rows, vocabulary), generator=torch.Generator().manual_seed(rows)).float()
    native.view(source)[:rows] = values
    native.run(rows_step(rows))
    assert native.peaks[:rows].tolist() == values.numpy().argmax(axis=1).tolist()
    native.close()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("rows", [1, 40])
def test_sums_of_exponentials_are_those_of_the_row_without_its_padding(isa: str, rows: int) -> None:
    native, source = logits_program(331, isa)
    values = 12.0 * torch.randn(rows, 331, generator=torch.Generator().manual_seed(rows))
    native.view(source)[:rows] = values
    native.step(rows_step(rows), wants_sums=True)
    assert native.sums is not None
    got = torch.from_numpy(native.sums).double().sum(1).log()
    assert (got - values.double().logsumexp(1)).abs().max() < 1e-5
    native.step(rows_step(rows))
    assert native.sums is None
    native.close()


@pytest.mark.parametrize("isa", ISAS)
def test_a_row_with_a_nan_has_no_peak(isa: str) -> None:
    native, source = logits_program(331, isa)
    values = torch.zeros(3, 331)
    values[1, 200] = float("nan")
    values[2, 7] = 1.0
    native.view(source)[:3] = values
    native.run(rows_step(3))
    assert native.peaks[:3].tolist() == [0, -1, 7]
    native.close()


@pytest.mark.parametrize("isa", ISAS)
def test_a_product_of_all_tokens_has_no_peaks_where_few_logits_are_read(isa: str) -> None:
    source, out = Buffer("in", 64, "act"), Buffer("out", 96, "f32")
    op = Linear(source, out, weight(96, 64), None, "store_f32")
    native = product_program(op, (source, out), isa, max_tokens=512, max_logit_rows=1)
    native.view(source)[:] = 0.5
    native.run(make_inputs([([3] * 512, 0, list(range(NUM_BLOCKS)))], BLOCK, all_logits=False))
    assert native.peaks.tolist() == [-1]
    assert torch.equal(native.view(out)[511], native.view(out)[0])
    native.close()

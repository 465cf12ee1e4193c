"""Rotated products (w8a8): values that stand out cost the other 7-bit values of their row little."""

from __future__ import annotations

import pytest
import torch

from millpond.inference.ops.program import Buffer, Embed, Linear
from millpond.inference.ops.quantise import HADAMARD, quantise_int8, quantise_rows, rotate
from tests.ops.test_ops import BLOCK, ISAS, rows_step, run_both, weight
from tests.support.steps import make_inputs


def spiky_rows(rows: int, inputs: int) -> torch.Tensor:
    """Normal numbers; three inputs of each row stand out, as behind an activation function."""
    value = torch.randn(rows, inputs, generator=torch.Generator().manual_seed(5))
    value[:, [7, inputs // 2, inputs - 3]] *= 60
    return value.bfloat16().float()


def relative_error(got: torch.Tensor, exact: torch.Tensor) -> float:
    return float((got - exact).norm() / exact.norm())


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("rows", "inputs"), [(1, 576), (40, 576), (40, 200)])
def test_w8a8_keeps_products_of_rows_with_spikes_close_to_exact(rows: int, inputs: int, isa: str) -> None:
    source, out = Buffer("in", inputs, "act"), Buffer("out", 96, "f32")
    matrix = weight(96, inputs)
    value = spiky_rows(rows, inputs)
    exact = (value.double() @ matrix.load().double().T).float()
    op = Linear(source, out, matrix, None, "store_f32")
    got, _ = run_both([op], [source, out], {source: value}, out, rows_step(rows), isa=isa, dtype="w8a8")
    assert relative_error(got, exact) < 0.02
    plain, scale = quantise_rows(value)
    unrotated = (plain * scale) @ matrix.load().T
    assert (got - exact).norm() < 0.7 * (unrotated - exact).norm()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [96, 320])
def test_rows_of_a_rotated_table_are_those_of_the_table(width: int, isa: str) -> None:
    out = Buffer("x", width, "f32")
    table = weight(48, width)
    tokens = [0, 47, 15, 16, 31, 32, 5]
    step = make_inputs([(tokens, 0, [0])], BLOCK, all_logits=True)
    got, _ = run_both([Embed(out, table, 1.5)], [out], {}, out, step, isa=isa, dtype="w8a8")
    assert relative_error(got, table.load()[tokens] * 1.5) < 0.01


def test_rotation_twice_and_products_of_rotated_rows_are_what_was_times_its_size() -> None:
    x = torch.randn(5, 200, generator=torch.Generator().manual_seed(1))
    y = torch.randn(5, 200, generator=torch.Generator().manual_seed(2))
    assert rotate(x).shape == (5, 256)
    assert torch.allclose(rotate(rotate(x))[:, :200], x * HADAMARD, atol=1e-3)
    assert torch.allclose((rotate(x) * rotate(y)).sum(-1), (x * y).sum(-1) * HADAMARD, atol=1e-2)


def test_a_rotated_weight_gives_its_rows_back() -> None:
    value = torch.randn(300, 200, generator=torch.Generator().manual_seed(1))
    kept = quantise_int8(value, is_rotated=True)
    assert kept.values.shape == (300, 256)
    assert relative_error(kept.rows(torch.arange(300)), value) < 0.01

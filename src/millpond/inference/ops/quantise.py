"""int8 quantisation: weights symmetric with one scale an output row, activations with one a token; round to nearest.

Shared by the reference (which widens per product) and the native library (which packs the integers). With dtype "int8"
the native library gives activations 15 bits (csrc/gemm_i8.h), finer than the bfloat16 they come in, so the reference
leaves them alone; with "w8a8" both give them 7 bits, per token as LLM.int8 (Dettmers et al. 2022) does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from millpond.inference.ops.program import Linear, Program

if TYPE_CHECKING:
    import torch

ROWS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """values [N, K] int8 and scale [N] float32; the weight is values * scale."""

    values: torch.Tensor
    scale: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.values.nbytes + self.scale.nbytes

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Rows as float32."""
        return self.values[index].float() * self.scale[index, None]

    def widen(self, dtype: torch.dtype) -> torch.Tensor:
        """The integers in a float dtype, without the scale; exact in bfloat16."""
        return self.values.to(dtype)


def quantise_int8(weight: torch.Tensor) -> Int8Weight:
    """Quantises [N, K] by row. A row of zeros keeps scale 1 so that nothing divides by zero."""
    import torch

    values = torch.empty(weight.shape, dtype=torch.int8)
    scale = torch.empty(weight.shape[0])
    # A slice at a time, which a cache holds: in one go the float copies take twelve bytes a weight and twice the time.
    for start in range(0, weight.shape[0], ROWS_AT_ONCE):
        rows = weight[start : start + ROWS_AT_ONCE].float()
        peak = rows.abs().amax(dim=1)
        part = torch.where(peak > 0, peak / 127.0, torch.ones_like(peak))
        scale[start : start + ROWS_AT_ONCE] = part
        values[start : start + ROWS_AT_ONCE] = torch.round(rows / part[:, None]).clamp_(-127, 127).to(torch.int8)
    return Int8Weight(values, scale)


def quantise_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantises activations, or keys and values, [..., K] by row.

    Returns:
        Whole numbers of -127 to 127 as float32 [..., K], and their scale [..., 1]. A row with a value that is not
        finite has scale NaN.
    """
    import torch

    x = x.float()
    peak = x.abs().amax(dim=-1, keepdim=True)
    is_finite = x.isfinite().all(dim=-1, keepdim=True)
    is_zero = (peak < 1e-30) | ~is_finite
    inverse = torch.where(is_zero, torch.zeros_like(peak), 127.0 / peak)
    scale = torch.where(is_finite, torch.where(is_zero, 0.0, peak / 127.0), torch.nan)
    return torch.where(is_zero, 0.0, torch.round(x * inverse)), scale


def coarse_products(program: Program) -> frozenset[Linear]:
    """The products whose activations w8a8 takes in 7 bits: those into the feed-forward layer and out of attention.

    The others keep 15 bits, by measurement (docs/design/program.md): what comes out of an activation function has a few
    values far above the rest, and keys, queries and logits are where coarse activations cost most.
    """
    linears = [op for op in program.ops if isinstance(op, Linear)]
    spiky = {op.out for op in linears if op.epilogue not in ("store_f32", "store_act", "add_f32")}
    return frozenset(op for op in linears if op.inp not in spiky and op.epilogue != "store_f32")

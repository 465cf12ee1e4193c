"""int8 quantisation: weights symmetric with one scale an output row, activations with one a token; round to nearest.

Shared by the reference (which widens per product) and the native library (which packs the integers). With dtype "int8"
the native library gives activations 15 bits (csrc/gemm_i8.h), finer than the bfloat16 they come in, so the reference
leaves them alone; with "w8a8" both give them 7 bits, per token as LLM.int8 (Dettmers et al. 2022) does, after a
rotation of activations and weights that spreads what stands out (QuaRot, Ashkboos et al. 2024), 64 inputs at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

ROWS_AT_ONCE = 256
HADAMARD = 64  # inputs that are rotated together (csrc/hadamard.h)


@dataclass(frozen=True, slots=True)
class Int8Weight:
    """values [N, K] int8 and scale [N] float32; the weight is values * scale.

    Of a rotated weight K is padded to whole groups of `HADAMARD`, and `inputs` is what it was.
    """

    values: torch.Tensor
    scale: torch.Tensor
    inputs: int
    is_rotated: bool = False

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.values.nbytes + self.scale.nbytes

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Rows as float32, [..., inputs]."""
        rows = self.values[index].float() * self.scale[index, None]
        return rotate(rows)[..., : self.inputs] / HADAMARD if self.is_rotated else rows

    def widen(self, dtype: torch.dtype) -> torch.Tensor:
        """The integers in a float dtype, without the scale; exact in bfloat16."""
        return self.values.to(dtype)


def rotate(x: torch.Tensor) -> torch.Tensor:
    """The Walsh-Hadamard transform of every `HADAMARD` numbers of [..., K] float32, K padded to whole groups.

    Twice gives `HADAMARD` times what was, and so does the product of two rotated rows.
    """
    import torch

    matrix = torch.ones(1, 1)
    while matrix.shape[0] < HADAMARD:
        matrix = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]]), matrix)
    padded = torch.nn.functional.pad(x, (0, -x.shape[-1] % HADAMARD))
    return (padded.reshape(*padded.shape[:-1], -1, HADAMARD) @ matrix).reshape(padded.shape)


def quantise_int8(weight: torch.Tensor, *, is_rotated: bool = False) -> Int8Weight:
    """Quantises [N, K] by row, rotated first or not. A row of zeros keeps scale 1 so that nothing divides by zero."""
    import torch

    outputs, inputs = weight.shape
    values = torch.empty((outputs, inputs + -inputs % HADAMARD if is_rotated else inputs), dtype=torch.int8)
    scale = torch.empty(outputs)
    # A slice at a time, which a cache holds: in one go the float copies take twelve bytes a weight and twice the time.
    for start in range(0, outputs, ROWS_AT_ONCE):
        rows = weight[start : start + ROWS_AT_ONCE].float()
        if is_rotated:
            rows = rotate(rows)
        peak = rows.abs().amax(dim=1)
        part = torch.where(peak > 0, peak / 127.0, torch.ones_like(peak))
        scale[start : start + ROWS_AT_ONCE] = part
        values[start : start + ROWS_AT_ONCE] = torch.round(rows / part[:, None]).clamp_(-127, 127).to(torch.int8)
    return Int8Weight(values, scale, inputs, is_rotated)


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

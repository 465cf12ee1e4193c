"""int8 weight-only quantisation: symmetric, one scale an output row, round to nearest.

Shared by the reference (which widens per product) and the native library (which packs the integers).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


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
    weight = weight.float()
    peak = weight.abs().amax(dim=1)
    scale = torch.where(peak > 0, peak / 127.0, torch.ones_like(peak))
    values = torch.round(weight / scale[:, None]).clamp_(-127, 127).to(torch.int8)
    return Int8Weight(values, scale)

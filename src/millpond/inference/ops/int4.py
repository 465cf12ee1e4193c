"""Weights of 4 bits in groups of 32: GGUF's blocks as they are, or made from floats in the same form.

Owns the form (`Int4Weight`), our quantiser, and the choice of which matrices of a model take it. Shared by the
reference (which widens) and the native library (which packs the bits); reading them from a file is the checkpoint's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from millpond.inference.ops.program import Embed, Linear, Program, Weight

if TYPE_CHECKING:
    import torch

GROUP = 32
LARGEST_HALF = 65504.0
ROWS_AT_ONCE = 256
Form = Literal["int4", "int4_min", "make_int4", "int8"]


@dataclass(frozen=True, slots=True)
class Int4Weight:
    """A matrix [N, K] of G = K / 32 groups a row: scale * (q - 8), or scale * q + minimum.

    Attributes:
        bits: [N, G, 16] uint8; number i of a group is the low half of byte i, number 16 + i its high half.
        scale: [N, G] float16.
        minimum: [N, G] float16, or None.
    """

    bits: torch.Tensor
    scale: torch.Tensor
    minimum: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of all parts."""
        return self.bits.nbytes + self.scale.nbytes + (0 if self.minimum is None else self.minimum.nbytes)

    def rows(self, index: torch.Tensor) -> torch.Tensor:
        """Rows as float32."""
        return self.arranged(lambda part: part[index]).widen()

    def widen(self) -> torch.Tensor:
        """All of it as float32 [N, K], bit for bit what ggml computes."""
        import torch

        numbers = torch.cat([self.bits & 15, self.bits >> 4], dim=-1).float()  # [N, G, 32]
        scale = self.scale.float()[..., None]
        if self.minimum is None:
            return ((numbers - 8) * scale).flatten(1)
        return (numbers * scale + self.minimum.float()[..., None]).flatten(1)

    def arranged(self, arrange: Callable[[torch.Tensor], torch.Tensor]) -> Int4Weight:
        """The same with its rows in another order, repeated or left out."""
        minimum = None if self.minimum is None else arrange(self.minimum)
        return Int4Weight(arrange(self.bits), arrange(self.scale), minimum)


def quantise_int4(weight: torch.Tensor) -> Int4Weight:
    """Quantises [N, K] by groups of 32 inputs, the last one padded with zeros.

    The scale maps the number furthest from zero to -8, as GGUF's Q4_0 does.
    """
    import torch
    import torch.nn.functional as F

    rows, columns = weight.shape
    groups = -(-columns // GROUP)
    bits = torch.empty((rows, groups, GROUP // 2), dtype=torch.uint8)
    scale = torch.empty((rows, groups), dtype=torch.float16)
    for start in range(0, rows, ROWS_AT_ONCE):  # a slice at a time: the float copies are the largest part of a start
        part = F.pad(weight[start : start + ROWS_AT_ONCE].float(), (0, -columns % GROUP)).view(-1, groups, GROUP)
        furthest = part.gather(2, part.abs().argmax(dim=2, keepdim=True))  # [n, G, 1]
        half = (furthest / -8).clamp(-LARGEST_HALF, LARGEST_HALF).half()
        step = torch.where(half == 0, torch.inf, half.float())
        numbers = (part / step + 8).round_().clamp_(0, 15).to(torch.uint8)
        bits[start : start + ROWS_AT_ONCE] = numbers[..., :16] | numbers[..., 16:] << 4
        scale[start : start + ROWS_AT_ONCE] = half[..., 0]
    return Int4Weight(bits, scale)


def quantise_groups(x: torch.Tensor) -> torch.Tensor:
    """Activations [T, K] as the native library multiplies them with 4 bits: int8 by groups of 32, times their scale.

    A group with a value that is not finite is NaN.
    """
    import torch
    import torch.nn.functional as F

    rows, columns = x.shape
    part = F.pad(x.float(), (0, -columns % GROUP)).view(rows, -1, GROUP)
    peak = part.abs().amax(dim=2, keepdim=True)
    is_zero = peak < 1e-30
    codes = torch.round(part * torch.where(is_zero, 0.0, 127.0 / peak))
    numbers = torch.where(is_zero, 0.0, codes * (peak / 127.0))
    return torch.where(part.isfinite().all(dim=2, keepdim=True), numbers, torch.nan).flatten(1)


def choose_form(program: Program, weight: Weight) -> Form:
    """How dtype "int4" keeps a matrix.

    What the file has in 4 bits stays so; what it has in other small types becomes int8. Of floats, all become 4 bits
    but the embedding and the matrix of the logits, where they cost most quality (docs/design/program.md).
    """
    kinds = {"float"} if program.stored is None else {program.stored.kind(name) for name, _ in weight.sources}
    if weight.arrange is not None and kinds <= {"int4", "int4_min"}:
        return "int4_min" if "int4_min" in kinds else "int4"
    if kinds != {"float"}:
        return "int8"
    for op in program.ops:
        if isinstance(op, Embed) and op.table is weight:
            return "int8"
        if isinstance(op, Linear) and op.weight is weight and op.out == program.logits:
            return "int8"
    return "make_int4"


def load_int4(program: Program, weight: Weight, form: Form) -> Int4Weight:
    """A matrix in 4 bits; `form` is what `choose_form` says of it, and not "int8"."""
    if form == "make_int4":
        return quantise_int4(weight.load())
    assert program.stored is not None
    assert weight.arrange is not None
    parts = [program.stored.read_int4(name) for name, _ in weight.sources]
    minimum = None
    if form == "int4_min":
        minimum = weight.arrange([_minimum_of(part) for part in parts])
    bits, scale = weight.arrange([part.bits for part in parts]), weight.arrange([part.scale for part in parts])
    return Int4Weight(bits, scale, minimum)


def _minimum_of(part: Int4Weight) -> torch.Tensor:
    """-8 scales where there is none: exact, for it is a power of two."""
    return part.minimum if part.minimum is not None else part.scale * -8

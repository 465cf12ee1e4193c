"""The tensor types of GGUF: how many numbers a block holds and how many bytes it takes.

Facts of the format, shared by the parser, the readers and (later) kernels that work on raw blocks.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class GgmlType:
    """A tensor type. `block_size` counts numbers, `type_size` bytes; a row holds whole blocks."""

    name: str
    code: int
    block_size: int
    type_size: int

    @property
    def is_quantised(self) -> bool:
        """Whether reading it makes float32 out of something smaller."""
        return self.block_size > 1

    def row_bytes(self, num_columns: int) -> int:
        """Bytes of a row of that many numbers (a multiple of the block size)."""
        return num_columns // self.block_size * self.type_size


_TYPES = (
    GgmlType("F32", 0, 1, 4),
    GgmlType("F16", 1, 1, 2),
    GgmlType("Q4_0", 2, 32, 18),
    GgmlType("Q4_1", 3, 32, 20),
    GgmlType("Q5_0", 6, 32, 22),
    GgmlType("Q5_1", 7, 32, 24),
    GgmlType("Q8_0", 8, 32, 34),
    GgmlType("Q4_K", 12, 256, 144),
    GgmlType("Q5_K", 13, 256, 176),
    GgmlType("Q6_K", 14, 256, 210),
    GgmlType("BF16", 30, 1, 2),
)
TYPE_OF_CODE = {kind.code: kind for kind in _TYPES}
TYPE_OF_NAME = {kind.name: kind for kind in _TYPES}

# Types the format knows and Millpond does not read, so that the error can name them.
UNSUPPORTED_NAMES = {
    9: "Q8_1",
    10: "Q2_K",
    11: "Q3_K",
    15: "Q8_K",
    16: "IQ2_XXS",
    17: "IQ2_XS",
    18: "IQ3_XXS",
    19: "IQ1_S",
    20: "IQ4_NL",
    21: "IQ3_S",
    22: "IQ2_S",
    23: "IQ4_XS",
    24: "I8",
    25: "I16",
    26: "I32",
    27: "I64",
    28: "F64",
    29: "IQ1_M",
    34: "TQ1_0",
    35: "TQ2_0",
    39: "MXFP4",
}

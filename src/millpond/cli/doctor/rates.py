"""Measures the other roof: how fast this machine multiplies, by dtype and instruction set, through the native library.

The roof over prompts, as the read bandwidth is the roof over tokens. Called by the doctor; nothing is judged here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class MultiplyRate:
    """Operations a second of one large product, all threads together."""

    isa: str
    dtype: str
    threads: int
    operations_per_s: float


def multiply_rates(threads: int) -> list[MultiplyRate]:
    """Every dtype on every instruction set the native library can use here; empty without the library."""
    from millpond.inference.ops import native
    from millpond.inference.ops.native_abi import ISA_NAMES
    from millpond.inference.ops.probe import PROBED_DTYPES, multiply_rate

    best = native.best_isa()
    if best == "none":
        return []
    return [
        MultiplyRate(isa, dtype, threads, multiply_rate(dtype, isa, threads))
        for isa in ISA_NAMES[: ISA_NAMES.index(best) + 1]
        for dtype in PROBED_DTYPES
    ]

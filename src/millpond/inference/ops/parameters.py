"""Where packed parameters live: the seam between the lowering, which knows their form, and whoever owns the bytes.

The lowering asks for each parameter by label and size, always in the same order for the same program. A store that has
the bytes already (a file of an earlier start) gives their address; another takes memory and lets them be written.
Knows no formats and no files. Called by `native_lowering.py`; implemented here and by `weights/packed_*.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Fill = Callable[[int], None]  # writes a parameter's bytes to an address; all of them are zero before


class ParameterStore(Protocol):
    """Gives every packed parameter a place."""

    def place(self, label: str, size_bytes: int, fill: Fill) -> int:
        """Returns the address of `size_bytes` bytes that hold what `fill` writes, on a multiple of 64.

        Args:
            label: What is asked for, with everything its form depends on.
            size_bytes: How much of it there is.
            fill: Reads and packs the parameter; not called when the store has it.
        """
        ...


class CountedParameters:
    """Packs nothing and adds up what there would be; its addresses are good for nothing.

    Attributes:
        sizes: Bytes by label, in order.
    """

    def __init__(self) -> None:
        self.sizes: dict[str, int] = {}

    def place(self, label: str, size_bytes: int, fill: Fill) -> int:
        """Notes a size; see `ParameterStore.place`."""
        del fill
        self.sizes[label] = size_bytes
        return 0


class FreshParameters:
    """Packs everything into memory that `take` gives, zeroed."""

    def __init__(self, take: Callable[[int], int]) -> None:
        self._take = take

    def place(self, label: str, size_bytes: int, fill: Fill) -> int:
        """Takes memory and fills it; see `ParameterStore.place`."""
        address = self._take(size_bytes)
        fill(address)
        return address

"""Parameters of a pretended program, to be packed and read back: bytes by label, and how often they were packed."""

from __future__ import annotations

import ctypes
import random

from millpond.inference.ops.parameters import ParameterStore
from millpond.inference.weights.packed_cache import PackedKey

SIZES = (64, 5000, 4096, 100, 70_000)


def make_key(source: str = "source", form: str = "form", dtype: str = "int8") -> PackedKey:
    """A key of its own for each source and form."""
    return PackedKey(source.ljust(24, "0"), form.ljust(24, "0"), "/models/some", dtype)


class PretendedProgram:
    """What a lowering would ask a store for."""

    def __init__(self, seed: int = 0, sizes: tuple[int, ...] = SIZES) -> None:
        chance = random.Random(seed)
        self.parameters = [(f"parameter {index}", chance.randbytes(size)) for index, size in enumerate(sizes)]
        self.num_filled = 0

    @property
    def size_bytes(self) -> int:
        return sum(len(data) for _, data in self.parameters)

    def pack(self, store: ParameterStore) -> None:
        """Asks for every parameter in order."""
        self.places(store)

    def places(self, store: ParameterStore) -> list[int]:
        """The address of every parameter."""
        return [self._place(store, label, data) for label, data in self.parameters]

    def _place(self, store: ParameterStore, label: str, data: bytes) -> int:
        def fill(address: int) -> None:
            self.num_filled += 1
            ctypes.memmove(address, data, len(data))

        return store.place(label, len(data), fill)

    def is_in(self, store: ParameterStore) -> bool:
        """Whether the store gives back every byte."""
        places = self.places(store)
        aligned = all(address % 64 == 0 for address in places)
        same = [
            ctypes.string_at(address, len(data)) == data
            for address, (_, data) in zip(places, self.parameters, strict=True)
        ]
        return aligned and all(same)

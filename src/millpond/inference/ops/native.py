"""The only door to the native op library: loading it, lowering a program to it, and running steps.

The library is plain C++ behind a C ABI (csrc/program.cpp), found beside this file when it was built. Parameters are
packed once into memory owned here; the KV cache and the activations live here too. Knows nothing of requests or files.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from millpond.base.errors import ConfigError
from millpond.inference.ops.inputs import StepInputs
from millpond.inference.ops.native_abi import ISA_NAMES, BufferStruct, StepStruct, declare
from millpond.inference.ops.native_lowering import Lowering, align32
from millpond.inference.ops.program import Buffer, Program

SPIN_US = 2000  # how long a worker waits for the next step before it sleeps


@functools.cache
def load_library() -> ctypes.CDLL | None:
    """The library, or None where it was not built."""
    for path in sorted(Path(__file__).parent.glob("_native*.so")):
        return declare(ctypes.CDLL(str(path)))
    return None


def best_isa() -> str:
    """Highest instruction set the library can use here; "none" without library or AVX2."""
    library = load_library()
    level = -1 if library is None else library.millpond_best_isa()
    return "none" if level < 0 else ISA_NAMES[level]


def unsupported(program_heads: tuple[int, int], hidden: int, rotary: int) -> str:
    """Why the native library cannot run a model of these dimensions; empty when it can.

    Args:
        program_heads: Query heads' dimension D and the number of kv heads.
        hidden: E.
        rotary: Dimensions that rope turns.
    """
    head_dim = program_heads[0]
    if head_dim % 32 or head_dim > 256:
        return f"head dimension {head_dim} is not a multiple of 32 up to 256"
    if hidden % 16:
        return f"hidden size {hidden} is not a multiple of 16"
    if rotary % 2:
        return f"rotary dimension {rotary} is odd"
    return ""


def read_seconds(num_threads: int, data: npt.NDArray[np.uint8]) -> float:
    """Seconds to read `data` once with `num_threads` threads.

    Raises:
        ConfigError: The native library was not built.
    """
    library = load_library()
    if library is None or library.millpond_best_isa() < 0:
        raise ConfigError("The native library is not available.", fix="Install a C++ compiler and reinstall.")
    return float(library.millpond_read_seconds(library.millpond_best_isa(), num_threads, data.ctypes.data, data.nbytes))


class NativeMemory:
    """A block of huge-page memory, freed with its owner."""

    def __init__(self, library: ctypes.CDLL, size_bytes: int) -> None:
        self._library = library
        self.size_bytes = max(size_bytes, 64)
        self.address = library.millpond_alloc(self.size_bytes)
        if not self.address:
            raise MemoryError(f"could not map {self.size_bytes / 1e6:.0f} MB")

    def as_tensor(self, dtype: torch.dtype, rows: int, columns: int) -> torch.Tensor:
        """A view [rows, columns]; valid while this object lives."""
        raw = (ctypes.c_byte * self.size_bytes).from_address(self.address)
        return torch.frombuffer(raw, dtype=dtype, count=rows * columns).view(rows, columns)

    def close(self) -> None:
        """Gives the memory back."""
        if self.address:
            self._library.millpond_free(self.address, self.size_bytes)
            self.address = 0


class NativeProgram:
    """A program packed and ready to run.

    Args:
        program: The model's step.
        dtype: "float32", "bfloat16" or "int8" (int8 weights, bfloat16 activations).
        isa: One of ISA_NAMES, at most `best_isa()`.
        num_threads: Threads of a step, the caller's included.
        num_blocks: Blocks of the KV cache.
        block_size: Tokens in a block, a multiple of 32.
        max_tokens: Most tokens of a step.
        max_logit_rows: Most logit rows of a step.
        on_weight: Called after each parameter with (done, total).

    Raises:
        ConfigError: No library, or it refuses this instruction set.
        MemoryError: The memory cannot be had.
    """

    def __init__(
        self,
        program: Program,
        *,
        dtype: str,
        isa: str,
        num_threads: int,
        num_blocks: int,
        block_size: int,
        max_tokens: int,
        max_logit_rows: int,
        on_weight: Callable[[int, int], None] | None = None,
    ) -> None:
        library = load_library()
        if library is None:
            raise ConfigError("The native library was not built.", fix="Install a C++ compiler and reinstall Millpond.")
        self._library = library
        self._program = program
        self._handle: int | None = None
        self._max_tokens, self._max_logit_rows = max_tokens, max_logit_rows
        self._act = torch.float32 if dtype == "float32" else torch.bfloat16
        self._cache_bytes_of_layer = (
            num_blocks * block_size * program.num_kv_heads * program.head_dim * self._act.itemsize
        )
        self._memory: list[NativeMemory] = []
        cache = self._allocate(2 * program.num_layers * self._cache_bytes_of_layer)
        self._views: dict[Buffer, torch.Tensor] = {}
        buffers = self._make_buffers()
        lowering = Lowering(
            library,
            program,
            dtype=dtype,
            block_size=block_size,
            allocate=self._allocate,
            cache_address=self._cache_address(cache),
        )
        ops = lowering.lower(on_weight)
        self._kept = (ops, buffers, lowering)
        self.weight_bytes = lowering.weight_bytes
        self.cache_bytes = cache.size_bytes
        self.num_ops = len(ops)
        level = ISA_NAMES.index(isa)
        self._handle = library.millpond_program_new(
            level, num_threads, SPIN_US, 0 if dtype == "float32" else 1, ops, len(ops), buffers, len(buffers)
        )
        if not self._handle:
            raise ConfigError(f"This machine cannot run {isa!r} kernels.", fix=f"The best it can is {best_isa()!r}.")

    def _allocate(self, size_bytes: int) -> NativeMemory:
        memory = NativeMemory(self._library, size_bytes)
        self._memory.append(memory)
        return memory

    def _cache_address(self, cache: NativeMemory) -> Callable[[int, int], int]:
        return lambda layer, kv: int(cache.address) + (2 * layer + kv) * self._cache_bytes_of_layer

    def _make_buffers(self) -> ctypes.Array[BufferStruct]:
        buffers = (BufferStruct * len(self._program.buffers))()
        for i, buffer in enumerate(self._program.buffers):
            rows = align32(self._max_tokens if buffer.per == "token" else self._max_logit_rows)
            is_act = buffer.kind == "act" and self._act == torch.bfloat16
            stride = align32(buffer.width)
            memory = self._allocate(rows * stride * (2 if is_act else 4))
            buffers[i] = BufferStruct(memory.address, stride, 1 if is_act else 0)
            dtype = torch.bfloat16 if is_act else torch.float32
            self._views[buffer] = memory.as_tensor(dtype, rows, stride)[:, : buffer.width]
        return buffers

    def view(self, buffer: Buffer) -> torch.Tensor:
        """A buffer's rows as they are after the last step, [rows, width]; writable, for tests and debugging."""
        return self._views[buffer]

    def run(self, inputs: StepInputs) -> tuple[torch.Tensor, float]:
        """One step.

        Returns:
            Logits [L, V] float32, a view that the next step overwrites, and the seconds the step took.
        """
        assert self._handle, "the program is closed"
        num_rows = int(inputs.logit_rows.shape[0])
        assert inputs.num_tokens <= self._max_tokens
        assert num_rows <= self._max_logit_rows
        step = StepStruct.of(inputs)
        seconds = self._library.millpond_program_run(self._handle, ctypes.byref(step))
        return self._views[self._program.logits][:num_rows], float(seconds)

    def profile(self) -> npt.NDArray[np.float64]:
        """From now on each op's seconds are added to the returned array, [num_ops]."""
        seconds = np.zeros(self.num_ops)
        self._library.millpond_program_profile(self._handle, seconds.ctypes.data)
        self._profile = seconds
        return seconds

    def close(self) -> None:
        """Stops the threads and frees all memory; the logits of earlier steps are invalid afterwards."""
        if self._handle:
            self._library.millpond_program_delete(self._handle)
            self._handle = None
        for memory in self._memory:
            memory.close()

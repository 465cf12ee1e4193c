"""The only door to the native op library: loading it, lowering a program to it, and running steps.

The library is plain C++ behind a C ABI (csrc/program.cpp), found beside this file when it was built. Parameters are
packed once into memory owned here; the KV cache and the activations live here too. Knows nothing of requests or files.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from millpond.base.errors import ConfigError
from millpond.inference.ops.inputs import StepInputs
from millpond.inference.ops.native_abi import ISA_NAMES, BufferStruct, StepStruct, declare
from millpond.inference.ops.native_lowering import Lowering, align32
from millpond.inference.ops.parameters import FreshParameters, ParameterStore
from millpond.inference.ops.program import Buffer, Program

if TYPE_CHECKING:
    import torch

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

    def close(self) -> None:
        """Gives the memory back."""
        if self.address:
            self._library.millpond_free(self.address, self.size_bytes)
            self.address = 0


class Arena:
    """Hands out pieces of a few large blocks, so that small ones share huge pages too; all is freed at once."""

    CHUNK_BYTES = 64 << 20
    _ALIGN = 4096

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._chunks: list[NativeMemory] = []
        self._left = 0
        self._next = 0

    def take(self, size_bytes: int) -> int:
        """The address of `size_bytes` zeroed bytes.

        Raises:
            MemoryError: They cannot be had.
        """
        size = (size_bytes + self._ALIGN - 1) // self._ALIGN * self._ALIGN
        if size > self._left:
            chunk = NativeMemory(self._library, max(size, self.CHUNK_BYTES))
            self._chunks.append(chunk)
            self._next, self._left = chunk.address, chunk.size_bytes
        address = self._next
        self._next += size
        self._left -= size
        return address

    def close(self) -> None:
        """Gives the memory back; every address is invalid afterwards."""
        for chunk in self._chunks:
            chunk.close()
        self._left = 0


def numbers_at(address: int, dtype: np.dtype[Any], rows: int, columns: int) -> npt.NDArray[Any]:
    """A view [rows, columns] of native memory; valid while that memory lives."""
    raw = (ctypes.c_byte * (rows * columns * dtype.itemsize)).from_address(address)
    return np.frombuffer(memoryview(raw), dtype).reshape(rows, columns)


def pack_parameters(
    program: Program, dtype: str, store: ParameterStore, on_weight: Callable[[int, int], None] | None = None
) -> None:
    """Asks `store` for every parameter of `program` as a `NativeProgram` of this dtype would, and makes nothing else.

    Raises:
        ConfigError: No library.
    """
    library = load_library()
    if library is None:
        raise ConfigError("The native library was not built.", fix="Install a C++ compiler and reinstall Millpond.")
    Lowering(
        library,
        program,
        dtype=dtype,
        block_size=32,
        parameters=store,
        cache_address=lambda layer, kv: 0,
        has_int8_cache=False,
    ).lower(on_weight)


class NativeProgram:
    """A program packed and ready to run.

    Args:
        program: The model's step.
        dtype: "float32", "bfloat16", "int8" (weights only), "w8a8" (activations too, per token) or "int4".
        isa: One of ISA_NAMES, at most `best_isa()`.
        num_threads: Threads of a step, the caller's included.
        num_blocks: Blocks of the KV cache.
        block_size: Tokens in a block, a multiple of 32.
        max_tokens: Most tokens of a step.
        max_logit_rows: Most logit rows of a step.
        cache_dtype: "int8" (a scale a token and kv head), or None: that of the activations.
        parameters: Where packed parameters are while the program lives; None packs them into memory of its own.
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
        cache_dtype: str | None = None,
        parameters: ParameterStore | None = None,
        on_weight: Callable[[int, int], None] | None = None,
    ) -> None:
        library = load_library()
        if library is None:
            raise ConfigError("The native library was not built.", fix="Install a C++ compiler and reinstall Millpond.")
        self._library = library
        self._program = program
        self._handle: int | None = None
        self._max_tokens, self._max_logit_rows = max_tokens, max_logit_rows
        self._act_bytes = 4 if dtype == "float32" else 2
        # Of a token and kv head; the scales of an int8 block stand behind its numbers.
        row_bytes = program.head_dim + 4 if cache_dtype == "int8" else program.head_dim * self._act_bytes
        self._cache_bytes_of_layer = num_blocks * block_size * program.num_kv_heads * row_bytes
        self._cache = NativeMemory(library, 2 * program.num_layers * self._cache_bytes_of_layer)
        self._arena = Arena(library)
        self.sums: npt.NDArray[np.float32] | None = None
        self._peaks = np.full(max_logit_rows, -1, np.int32)
        self._inputs: StepInputs | None = None  # of the last step, and the library's view of them
        self._step = StepStruct()
        self._views: dict[Buffer, npt.NDArray[Any]] = {}  # bfloat16 as uint16
        buffers = self._make_buffers()
        self._logits = self._views[program.logits]
        lowering = Lowering(
            library,
            program,
            dtype=dtype,
            block_size=block_size,
            parameters=parameters or FreshParameters(self._arena.take),
            cache_address=self._cache_address,
            has_int8_cache=cache_dtype == "int8",
        )
        ops = lowering.lower(on_weight)
        self._kept = (ops, buffers, lowering)
        self.weight_bytes = lowering.weight_bytes
        self.cache_bytes = self._cache.size_bytes
        self.num_ops = len(ops)
        level = ISA_NAMES.index(isa)
        self._handle = library.millpond_program_new(
            level, num_threads, SPIN_US, 0 if dtype == "float32" else 1, ops, len(ops), buffers, len(buffers)
        )
        if not self._handle:
            raise ConfigError(f"This machine cannot run {isa!r} kernels.", fix=f"The best it can is {best_isa()!r}.")

    def _cache_address(self, layer: int, kv: int) -> int:
        return int(self._cache.address) + (2 * layer + kv) * self._cache_bytes_of_layer

    def _make_buffers(self) -> ctypes.Array[BufferStruct]:
        buffers = (BufferStruct * len(self._program.buffers))()
        for i, buffer in enumerate(self._program.buffers):
            rows = align32(self._max_tokens if buffer.per == "token" else self._max_logit_rows)
            is_act = buffer.kind == "act" and self._act_bytes == 2
            stride = align32(buffer.width)
            address = self._arena.take(rows * stride * (2 if is_act else 4))
            buffers[i] = BufferStruct(address, stride, 1 if is_act else 0)
            dtype = np.dtype(np.uint16 if is_act else np.float32)
            self._views[buffer] = numbers_at(address, dtype, rows, stride)[:, : buffer.width]
        return buffers

    def view(self, buffer: Buffer) -> torch.Tensor:
        """A buffer's rows as they are after the last step, [rows, width]; writable, for tests and debugging."""
        import torch

        rows = torch.from_numpy(self._views[buffer])
        return rows if rows.dtype == torch.float32 else rows.view(torch.bfloat16)

    def run(self, inputs: StepInputs) -> tuple[torch.Tensor, float]:
        """`step`, with the logits as a tensor that shares their memory."""
        import torch

        logits, seconds = self.step(inputs)
        return torch.from_numpy(logits), seconds

    def step(self, inputs: StepInputs, *, wants_sums: bool = False) -> tuple[npt.NDArray[np.float32], float]:
        """One step. Inputs that are the same object as the last step's are taken to lie where they lay.

        Returns:
            Logits [L, V] float32, a view that the next step overwrites, and the seconds the step took. `peaks` then
            says where each row is largest.
        """
        assert self._handle, "the program is closed"
        if inputs is not self._inputs:
            assert inputs.num_tokens <= self._max_tokens
            assert inputs.logit_rows.shape[0] <= self._max_logit_rows
            self._inputs, self._step = inputs, StepStruct.of(inputs, self._peaks)
        num_rows = self._step.num_rows
        self.sums = np.empty((num_rows, align32(self._program.vocab_size) // 32), np.float32) if wants_sums else None
        self._step.sums = None if self.sums is None else self.sums.ctypes.data
        seconds = self._library.millpond_program_run(self._handle, ctypes.byref(self._step))
        return self._logits[:num_rows], seconds

    @property
    def peaks(self) -> npt.NDArray[np.int32]:
        """The column of each logit row's largest value in the last step, the first of equals; -1 with a NaN."""
        return self._peaks

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
        self._arena.close()
        self._cache.close()

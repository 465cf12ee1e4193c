"""Blocks of GGUF's quantised types to float32, vectorised with numpy, in chunks that stay in the cache.

The arithmetic follows ggml operation by operation, so results equal its own bit for bit. Chunks run on a pool that
the caller owns: one fork and join a tensor, where threads inside each operation would meet a thousand times. Pure:
bytes in, numbers out. Called by gguf_checkpoint.py.

A "half" below is a float16 scale stored in two bytes; low bits lie in `qs`, fifth and sixth bits apart in `qh`.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Executor

import numpy as np
import numpy.typing as npt

from millpond.inference.weights.gguf_types import GgmlType

Bytes = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
CHUNK_NUMBERS = 1 << 18  # 1 MiB of output


def dequantise(raw: Bytes, kind: GgmlType, num_columns: int, pool: Executor | None = None) -> Floats:
    """Turns rows of blocks (uint8 [rows, bytes of a row]) into float32 [rows, num_columns]."""
    blocks = raw.reshape(-1, kind.type_size)
    out = np.empty((blocks.shape[0], kind.block_size), dtype=np.float32)
    unpack = _UNPACK[kind.name]
    step = CHUNK_NUMBERS // kind.block_size

    def unpack_chunk(start: int) -> None:
        unpack(blocks[start : start + step], out[start : start + step])

    starts = range(0, blocks.shape[0], step)
    for _ in map(unpack_chunk, starts) if pool is None or len(starts) < 2 else pool.map(unpack_chunk, starts):
        pass
    return out.reshape(raw.shape[0], num_columns)


def _half(blocks: Bytes, offset: int) -> Floats:
    halves = np.ascontiguousarray(blocks[:, offset : offset + 2]).view("<f2")
    return halves.astype(np.float32)  # [N, 1]


def _nibbles(qs: Bytes, out: Floats) -> None:
    """16 bytes to 32 numbers: the low halves come first, then the high ones."""
    out[:, :16] = qs & 0x0F
    out[:, 16:] = qs >> 4


def _fifth_bits(qh: Bytes) -> Bytes:
    """16 where a bit of the 32-bit mask is set, else 0; bit j belongs to number j."""
    bits = np.unpackbits(np.ascontiguousarray(qh), axis=1, bitorder="little")
    return bits << np.uint8(4)  # [N, 32]


def _q8_0(blocks: Bytes, out: Floats) -> None:
    out[:] = blocks[:, 2:].view(np.int8)
    out *= _half(blocks, 0)


def _q4_0(blocks: Bytes, out: Floats) -> None:
    _nibbles(blocks[:, 2:], out)
    out -= 8
    out *= _half(blocks, 0)


def _q4_1(blocks: Bytes, out: Floats) -> None:
    _nibbles(blocks[:, 4:], out)
    out *= _half(blocks, 0)
    out += _half(blocks, 2)


def _q5_0(blocks: Bytes, out: Floats) -> None:
    _nibbles(blocks[:, 6:], out)
    out += _fifth_bits(blocks[:, 2:6])
    out -= 16
    out *= _half(blocks, 0)


def _q5_1(blocks: Bytes, out: Floats) -> None:
    _nibbles(blocks[:, 8:], out)
    out += _fifth_bits(blocks[:, 4:8])
    out *= _half(blocks, 0)
    out += _half(blocks, 2)


def k_scales(blocks: Bytes) -> tuple[Floats, Floats]:
    """The eight 6-bit scales and minimums of Q4_K and Q5_K, times the block's own: two [N, 8, 1]."""
    low, middle, high = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([low & 0x3F, (high & 0x0F) | ((low >> 2) & 0x30)], axis=1)
    minimums = np.concatenate([middle & 0x3F, (high >> 4) | ((middle >> 2) & 0x30)], axis=1)
    return (_half(blocks, 0) * scales)[:, :, np.newaxis], (_half(blocks, 2) * minimums)[:, :, np.newaxis]


def _nibble_rows(qs: Bytes, out: Floats) -> None:
    """128 bytes to 256 numbers: of each 32 bytes the low halves, then the high ones."""
    pairs, rows = out.reshape(-1, 4, 2, 32), qs.reshape(-1, 4, 32)
    pairs[:, :, 0] = rows & 0x0F
    pairs[:, :, 1] = rows >> 4


def _q4_k(blocks: Bytes, out: Floats) -> None:
    scales, minimums = k_scales(blocks)
    _nibble_rows(blocks[:, 16:], out)
    rows = out.reshape(-1, 8, 32)
    rows *= scales
    rows -= minimums


def _q5_k(blocks: Bytes, out: Floats) -> None:
    scales, minimums = k_scales(blocks)
    _nibble_rows(blocks[:, 48:], out)
    rows = out.reshape(-1, 8, 32)
    shifts = np.arange(8, dtype=np.uint8).reshape(1, 8, 1)
    rows += ((blocks[:, np.newaxis, 16:48] >> shifts) & 1) << 4  # [N, 8, 32]
    rows *= scales
    rows -= minimums


def _q6_k(blocks: Bytes, out: Floats) -> None:
    low = blocks[:, :128].reshape(-1, 2, 1, 64)
    nibbles = np.concatenate([low & 0x0F, low >> 4], axis=2).reshape(-1, 8, 32)
    shifts = np.array([0, 2, 4, 6], dtype=np.uint8).reshape(1, 1, 4, 1)
    high = ((blocks[:, 128:192].reshape(-1, 2, 1, 32) >> shifts) & 3).reshape(-1, 8, 32)
    out[:] = (nibbles | (high << 4)).reshape(out.shape)
    out -= 32
    rows = out.reshape(-1, 16, 16)
    rows *= (_half(blocks, 208) * blocks[:, 192:208].view(np.int8))[:, :, np.newaxis]


_UNPACK: dict[str, Callable[[Bytes, Floats], None]] = {
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}

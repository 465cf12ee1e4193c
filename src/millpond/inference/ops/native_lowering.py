"""Lowers a program to the native library's op structs, packing each parameter once.

Owns the order of rows that gated projections are packed in and the choice of a matrix's stored dtype. Used by
`NativeProgram` alone.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from millpond.inference.ops import native_abi as abi
from millpond.inference.ops.int4 import GROUP, Form, choose_form, load_int4
from millpond.inference.ops.parameters import ParameterStore
from millpond.inference.ops.program import (
    GATED_EPILOGUES,
    Attention,
    Buffer,
    Embed,
    Gather,
    Linear,
    Norm,
    Op,
    Program,
    RopeKv,
    Weight,
)
from millpond.inference.ops.quantise import quantise_int8

if TYPE_CHECKING:
    import torch

GATE_GROUP = 16  # gate and up columns alternate in groups of this many (csrc/gemm.h)
MATRIX_DTYPES = {"float32": abi.DTYPE_F32, "bfloat16": abi.DTYPE_BF16, "int8": abi.DTYPE_I8, "w8a8": abi.DTYPE_I8}
INT4_DTYPES = {"int4": abi.DTYPE_Q4, "int4_min": abi.DTYPE_Q4_MIN, "make_int4": abi.DTYPE_Q4, "int8": abi.DTYPE_I8}
ACTIVATION_PLANES = {"int8": 2, "w8a8": 1, "int4": 2}  # int8 planes of a row of activations (csrc/gemm_i8.h)


def align32(n: int) -> int:
    """n rounded up to a multiple of 32, the padding of every buffer."""
    return (n + 31) // 32 * 32


def align64(n: int) -> int:
    """n rounded up to a multiple of 64, a line of the cache."""
    return (n + 63) // 64 * 64


def vector_at(address: int, count: int) -> torch.Tensor:
    """A view of `count` float32 numbers of native memory; valid while that memory lives."""
    import torch

    raw = (ctypes.c_byte * (4 * count)).from_address(address)
    return torch.frombuffer(raw, dtype=torch.float32, count=count)


def interleave_gate_up(stacked: torch.Tensor) -> torch.Tensor:
    """[2F, ...] gate rows then up rows -> groups of 16 gate, 16 up; F is padded with zero rows to a multiple of 16."""
    ffn = stacked.shape[0] // 2
    padded = (ffn + GATE_GROUP - 1) // GATE_GROUP * GATE_GROUP
    rest = stacked.shape[1:]
    halves = stacked.new_zeros((2, padded, *rest))
    halves[:, :ffn] = stacked.reshape(2, ffn, *rest)
    groups = halves.reshape(2, padded // GATE_GROUP, GATE_GROUP, *rest)
    return groups.transpose(0, 1).reshape(2 * padded, *rest).contiguous()


class Lowering:
    """Turns ops into structs; keeps what they point at alive."""

    def __init__(
        self,
        library: ctypes.CDLL,
        program: Program,
        *,
        dtype: str,
        block_size: int,
        parameters: ParameterStore,
        cache_address: Callable[[int, int], int],
        has_int8_cache: bool,
    ) -> None:
        self._library = library
        self._program = program
        self._dtype = dtype
        self._is_rotated = dtype == "w8a8"
        self._block_size = block_size
        self._parameters = parameters
        self._cache_address = cache_address
        float_dtype = abi.DTYPE_F32 if dtype == "float32" else abi.DTYPE_BF16
        self._cache_dtype = abi.DTYPE_I8 if has_int8_cache else float_dtype
        self._index = {buffer: i for i, buffer in enumerate(program.buffers)}
        self._packed: dict[int, tuple[int, int, int]] = {}  # id of a weight -> dtype, address, address of scales
        self._kept: list[npt.NDArray[np.float32]] = []
        self.weight_bytes = 0

    def lower(self, on_weight: Callable[[int, int], None] | None) -> ctypes.Array[abi.OpStruct]:
        """All ops; `on_weight` hears (done, total) ops, for a progress bar."""
        ops = self._program.ops
        structs = (abi.OpStruct * len(ops))()
        for i, op in enumerate(ops):
            structs[i] = self._lower_op(op)
            if on_weight:
                on_weight(i + 1, len(ops))
        return structs

    def _lower_op(self, op: Op) -> abi.OpStruct:
        if isinstance(op, Embed):
            return self._embed(op)
        if isinstance(op, Norm):
            return self._norm(op)
        if isinstance(op, Linear):
            return self._linear(op)
        if isinstance(op, RopeKv):
            return self._rope_kv(op)
        if isinstance(op, Attention):
            return self._attention(op)
        return self._gather(op)

    def _struct(self, kind: int, inp: Buffer | None, out: Buffer, n: list[int], f: list[float]) -> abi.OpStruct:
        struct = abi.OpStruct()
        struct.kind = kind
        struct.rows = 1 if out.per == "logit" else 0
        struct.inp = -1 if inp is None else self._index[inp]
        struct.out = self._index[out]
        for i, value in enumerate(n):
            struct.n[i] = value
        for i, number in enumerate(f):
            struct.f[i] = number
        return struct

    def _embed(self, op: Embed) -> abi.OpStruct:
        vocab, width = op.table.shape
        dtype, address, scales = self._matrix(op.table, is_gated=False)
        struct = self._struct(abi.KIND_EMBED, None, op.out, [width, dtype, vocab], [op.scale])
        struct.p[0], struct.p[1] = address, scales or None
        struct.flags = abi.FLAG_ROTATED_TABLE if self._is_rotated else 0
        if op.positions is not None:
            struct.p[2] = self._vector(op.positions)
        return struct

    def _norm(self, op: Norm) -> abi.OpStruct:
        struct = self._struct(abi.KIND_NORM, op.inp, op.out, [op.inp.width], [op.eps])
        struct.flags = abi.FLAG_LAYER_NORM if op.is_layer_norm else 0
        struct.flags |= {"act": 0, "f32": abi.FLAG_OUT_F32, "add_f32": abi.FLAG_OUT_ADD}[op.output]
        struct.p[0] = self._vector(op.weight)
        struct.p[1] = self._vector(op.bias) if op.bias is not None else None
        return struct

    def _linear(self, op: Linear) -> abi.OpStruct:
        is_gated = op.epilogue in GATED_EPILOGUES
        outputs, inputs = _packed_rows(op.weight, is_gated), op.weight.shape[1]
        dtype, address, scales = self._matrix(op.weight, is_gated=is_gated)
        shape = [outputs, inputs, dtype, abi.EPILOGUES.index(op.epilogue), 0, ACTIVATION_PLANES.get(self._dtype, 0)]
        struct = self._struct(abi.KIND_LINEAR, op.inp, op.out, shape, [])
        struct.p[0], struct.p[1] = address, scales or None
        # There is room for the peaks of logit rows alone.
        has_peaks = op.out == self._program.logits and op.out.per == "logit"
        struct.flags = abi.FLAG_FIND_PEAKS if has_peaks else 0
        if op.bias is not None:
            struct.p[2] = self._vector(op.bias, is_gated=is_gated)
        return struct

    def _rope_kv(self, op: RopeKv) -> abi.OpStruct:
        program = self._program
        rotary = op.rope.rotary if op.rope else 0
        shape = [program.num_heads, program.num_kv_heads, program.head_dim, rotary, self._block_size, self._cache_dtype]
        struct = self._struct(abi.KIND_ROPE_KV, op.qkv, op.out, shape, [op.eps, op.q_scale])
        struct.p[0] = self._keep(op.rope.table) if op.rope else None
        struct.p[1] = self._vector(op.q_norm) if op.q_norm is not None else None
        struct.p[2] = self._vector(op.k_norm) if op.k_norm is not None else None
        struct.p[3], struct.p[4] = self._cache_address(op.layer, 0), self._cache_address(op.layer, 1)
        return struct

    def _attention(self, op: Attention) -> abi.OpStruct:
        program = self._program
        shape = [
            program.num_heads,
            program.num_kv_heads,
            program.head_dim,
            op.window,
            self._block_size,
            self._cache_dtype,
        ]
        struct = self._struct(abi.KIND_ATTENTION, op.q, op.out, shape, [])
        struct.flags = abi.FLAG_LOGIT_ROWS_ALONE if op.for_logits_alone else 0
        struct.p[0] = self._keep(op.alibi_slopes) if op.alibi_slopes is not None else None
        struct.p[3], struct.p[4] = self._cache_address(op.layer, 0), self._cache_address(op.layer, 1)
        return struct

    def _gather(self, op: Gather) -> abi.OpStruct:
        return self._struct(abi.KIND_GATHER, op.inp, op.out, [op.inp.width], [])

    def _keep(self, numbers: npt.NDArray[np.float32]) -> int:
        kept = np.ascontiguousarray(numbers, np.float32)
        self._kept.append(kept)
        return int(kept.ctypes.data)

    def _vector(self, weight: Weight, *, is_gated: bool = False) -> int:
        """A float32 copy, padded with zeros to a multiple of 32 elements."""
        count = _packed_rows(weight, is_gated)
        for extent in weight.shape[1:]:
            count *= extent

        def fill(address: int) -> None:
            value = weight.load().float()
            flat = (interleave_gate_up(value) if is_gated else value).reshape(-1)
            vector_at(address, count).copy_(flat)

        self.weight_bytes += 4 * align32(count)
        return self._parameters.place(f"{weight.name} float32{' gated' * is_gated}", 4 * align32(count), fill)

    def _matrix(self, weight: Weight, *, is_gated: bool) -> tuple[int, int, int]:
        """The dtype a matrix is kept in, where it is packed, and where its scales are: int8 only, behind it; else 0."""
        if id(weight) in self._packed:
            return self._packed[id(weight)]
        form = choose_form(self._program, weight) if self._dtype == "int4" else "int8"
        dtype = INT4_DTYPES[form] if self._dtype == "int4" else MATRIX_DTYPES[self._dtype]
        outputs, inputs = _packed_rows(weight, is_gated), weight.shape[1]
        packed_bytes = int(self._library.millpond_packed_bytes(dtype, outputs, inputs))
        behind = align64(packed_bytes)
        has_scales = dtype == abi.DTYPE_I8

        def fill(address: int) -> None:
            if dtype in (abi.DTYPE_Q4, abi.DTYPE_Q4_MIN):
                self._pack_int4(weight, form, address, is_gated=is_gated)
                return
            value = weight.load()
            if is_gated:
                value = interleave_gate_up(value)
            if has_scales:
                quantised = quantise_int8(value, is_rotated=self._is_rotated)
                value = quantised.values
                vector_at(address + behind, outputs).copy_(quantised.scale)
            else:
                value = value.float() if dtype == abi.DTYPE_F32 else value.bfloat16()
            value = value.contiguous()
            self._library.millpond_pack(dtype, value.data_ptr(), address, outputs, value.shape[1])

        size = behind + 4 * align32(outputs) if has_scales else packed_bytes
        label = f"{weight.name} {abi.DTYPE_NAMES[dtype]} {outputs}x{inputs}{' gated' * is_gated}"
        label += " rotated" * self._is_rotated
        address = self._parameters.place(label, size, fill)
        self.weight_bytes += size
        self._packed[id(weight)] = (dtype, address, address + behind if has_scales else 0)
        return self._packed[id(weight)]

    def _pack_int4(self, weight: Weight, form: Form, address: int, *, is_gated: bool) -> None:
        value = load_int4(self._program, weight, form)
        if is_gated:
            value = value.arranged(interleave_gate_up)
        bits, scale = value.bits.contiguous(), value.scale.contiguous()
        minimum = None if value.minimum is None else value.minimum.contiguous()
        outputs, groups = scale.shape
        self._library.millpond_pack_q4(
            INT4_DTYPES[form],
            bits.data_ptr(),
            scale.data_ptr(),
            None if minimum is None else minimum.data_ptr(),
            address,
            outputs,
            groups * GROUP,
        )


def _packed_rows(weight: Weight, is_gated: bool) -> int:
    """Outputs of a parameter once it is packed: gate and up are each padded to whole groups."""
    rows = weight.shape[0]
    return 2 * ((rows // 2 + GATE_GROUP - 1) // GATE_GROUP * GATE_GROUP) if is_gated else rows

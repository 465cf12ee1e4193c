"""Mirror of csrc/program.h: structs, enums and signatures of the native library. Change both together."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt

from millpond.base.errors import ConfigError
from millpond.inference.ops.inputs import StepInputs

ISA_NAMES = ("avx2", "avx512", "avx512_bf16", "amx")
KIND_EMBED, KIND_NORM, KIND_LINEAR, KIND_ROPE_KV, KIND_ATTENTION, KIND_GATHER = range(6)
DTYPE_F32, DTYPE_BF16, DTYPE_I8, DTYPE_Q4, DTYPE_Q4_MIN = range(5)
DTYPE_NAMES = ("float32", "bfloat16", "int8", "int4", "int4 minimums")
EPILOGUES = (
    "store_f32",
    "store_act",
    "add_f32",
    "silu_mul",
    "gelu_tanh_mul",
    "gelu_tanh",
    "gelu",
    "gelu_mul",
    "silu",
)
FLAG_LAYER_NORM, FLAG_OUT_F32, FLAG_OUT_ADD = 1, 2, 4
FLAG_FIND_PEAKS = 1
FLAG_ROTATED_TABLE = 1
FLAG_LOGIT_ROWS_ALONE = 1


class OpStruct(ctypes.Structure):
    """struct Op."""

    _fields_ = (
        ("kind", ctypes.c_int32),
        ("rows", ctypes.c_int32),
        ("inp", ctypes.c_int32),
        ("out", ctypes.c_int32),
        ("flags", ctypes.c_int32),
        ("n", ctypes.c_int32 * 11),
        ("f", ctypes.c_float * 4),
        ("p", ctypes.c_void_p * 6),
    )


class BufferStruct(ctypes.Structure):
    """struct Buffer."""

    _fields_ = (("data", ctypes.c_void_p), ("stride", ctypes.c_int64), ("dtype", ctypes.c_int32))


class StepStruct(ctypes.Structure):
    """struct Step; pointers into the arrays of a `StepInputs`, which must outlive the call."""

    _fields_ = (
        ("num_tokens", ctypes.c_int32),
        ("num_sequences", ctypes.c_int32),
        ("num_rows", ctypes.c_int32),
        ("max_blocks", ctypes.c_int32),
        ("token_ids", ctypes.c_void_p),
        ("positions", ctypes.c_void_p),
        ("slots", ctypes.c_void_p),
        ("query_start", ctypes.c_void_p),
        ("context_len", ctypes.c_void_p),
        ("block_tables", ctypes.c_void_p),
        ("logit_rows", ctypes.c_void_p),
        ("peaks", ctypes.c_void_p),
        ("sums", ctypes.c_void_p),
    )

    @classmethod
    def of(cls, inputs: StepInputs, peaks: npt.NDArray[np.int32]) -> StepStruct:
        """Points at the arrays of a step; `peaks` is written, and `sums` by whoever wants them."""
        return cls(
            inputs.num_tokens,
            inputs.num_sequences,
            inputs.logit_rows.shape[0],
            inputs.block_tables.shape[1],
            inputs.token_ids.ctypes.data,
            inputs.positions.ctypes.data,
            inputs.slots.ctypes.data,
            inputs.query_start.ctypes.data,
            inputs.context_len.ctypes.data,
            inputs.block_tables.ctypes.data,
            inputs.logit_rows.ctypes.data,
            peaks.ctypes.data,
        )


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Sets the signatures and checks that library and mirror agree on the structs.

    Raises:
        ConfigError: The library on disk is of another version.
    """
    p, i32, i64, f64 = ctypes.c_void_p, ctypes.c_int, ctypes.c_int64, ctypes.c_double
    signatures = {
        "millpond_best_isa": (i32, ()),
        "millpond_op_bytes": (i64, ()),
        "millpond_alloc": (p, (i64,)),
        "millpond_free": (None, (p, i64)),
        "millpond_packed_bytes": (i64, (i32, i64, i64)),
        "millpond_pack": (None, (i32, p, p, i64, i64)),
        "millpond_pack_q4": (None, (i32, p, p, p, p, i64, i64)),
        "millpond_program_new": (p, (i32, i32, i32, i32, p, i64, p, i64)),
        "millpond_program_delete": (None, (p,)),
        "millpond_program_run": (f64, (p, p)),
        "millpond_program_profile": (None, (p, p)),
        "millpond_read_seconds": (f64, (i32, i32, p, i64)),
    }
    try:
        for name, (result, arguments) in signatures.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, list(arguments)
        agrees = library.millpond_op_bytes() == ctypes.sizeof(OpStruct)
    except AttributeError:
        agrees = False
    if not agrees:
        raise ConfigError(
            "The native library is of another version.", fix="Reinstall Millpond so that it is built again."
        )
    return library

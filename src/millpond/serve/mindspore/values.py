"""`Value`: one input or output of one instance, and its form as a servable's tensor.

MindSpore Serving has strings and bytes where servables have only BYTES. A scalar string is a BYTES tensor of shape (),
bytes are one of shape (1,): so a method that passes its input on gives back what it got. Used by the dispatcher on one
side and by the stage functions in the workers on the other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from millpond.serve.servables.tensors import Tensor, datatype_of

Array = NDArray[Any]

# The protocol's names of datatypes, for messages: numpy's in their spelling.
_NAMES = {
    "bool": "kMSI_Bool",
    "int8": "kMSI_Int8",
    "int16": "kMSI_Int16",
    "int32": "kMSI_Int32",
    "int64": "kMSI_Int64",
    "uint8": "kMSI_Uint8",
    "uint16": "kMSI_Uint16",
    "uint32": "kMSI_Uint32",
    "uint64": "kMSI_Uint64",
    "float16": "kMSI_Float16",
    "float32": "kMSI_Float32",
    "float64": "kMSI_Float64",
    "object": "kMSI_Bytes",
}


@dataclass(frozen=True, slots=True)
class Value:
    """An array, or strings or bytes (UTF-8 or raw `bytes` in an object array)."""

    kind: Literal["tensor", "string", "bytes"]
    array: Array


def make_text(content: bytes, kind: Literal["string", "bytes"], shape: tuple[int, ...] = ()) -> Value:
    """Returns a string or bytes value; `shape` has one element."""
    array = np.empty((1,), dtype=object)
    array[0] = content
    return Value(kind, array.reshape(shape))


def to_tensor(name: str, value: Value) -> Tensor:
    """Returns the value as a servable's input."""
    if value.kind == "tensor":
        array = np.ascontiguousarray(value.array) if value.array.ndim else value.array
        return Tensor(name, datatype_of(array), array)
    return Tensor(name, "BYTES", value.array.reshape(() if value.kind == "string" else (1,)))


def from_tensor(tensor: Tensor) -> Value:
    """Returns a servable's output as a value; BYTES of other shapes are strings, as other servables mean them."""
    array = tensor.array
    if tensor.datatype == "BF16":
        return Value("tensor", (array.astype(np.uint32) << 16).view(np.float32))
    if array.dtype.kind not in "OSU":
        return Value("tensor", array)
    if array.shape == (1,):
        return Value("bytes", array.reshape(()))
    return Value("string", array)


def name_of_dtype(dtype: np.dtype[Any]) -> str:
    """Returns the protocol's name of a datatype."""
    return _NAMES.get(dtype.name, dtype.name)

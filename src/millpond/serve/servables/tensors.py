"""`Tensor` and its datatypes, in the words of the Open Inference Protocol.

A tensor is a numpy array with a datatype beside it, because two datatypes have no numpy type of their own: BYTES
(an object array whose elements are `bytes`) and BF16 (a uint16 array with the upper halves of float32). Nothing here
knows a wire format.
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

NUMPY_TYPES: dict[str, np.dtype[np.generic]] = {
    "BOOL": np.dtype(np.bool_),
    "UINT8": np.dtype(np.uint8),
    "UINT16": np.dtype(np.uint16),
    "UINT32": np.dtype(np.uint32),
    "UINT64": np.dtype(np.uint64),
    "INT8": np.dtype(np.int8),
    "INT16": np.dtype(np.int16),
    "INT32": np.dtype(np.int32),
    "INT64": np.dtype(np.int64),
    "FP16": np.dtype(np.float16),
    "BF16": np.dtype(np.uint16),
    "FP32": np.dtype(np.float32),
    "FP64": np.dtype(np.float64),
    "BYTES": np.dtype(object),
}

_OF_NUMPY = {kind: name for name, kind in NUMPY_TYPES.items() if name != "BF16"}


class Tensor(msgspec.Struct):
    """A named array.

    Attributes:
        name: The servable's name for it.
        datatype: A key of `NUMPY_TYPES`.
        array: C-contiguous, little-endian, of the type the datatype has in `NUMPY_TYPES`; treat as read-only. It may
            be a view on the request's body or on shared memory, valid until the request has its last response.
    """

    name: str
    datatype: str
    array: NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """What a servable says about one input or output.

    Attributes:
        name: Unique among the inputs, or among the outputs.
        datatype: A key of `NUMPY_TYPES`.
        dims: Without the batch dimension; -1 means any size.
        optional: Whether a request may leave it out (inputs only).
        reshape: The shape the back end sees instead of `dims`; None when it is the same.
        ragged: Whether requests whose sizes differ may be batched (inputs only).
        labels: Class names by index, for classification (outputs only).
    """

    name: str
    datatype: str
    dims: tuple[int, ...]
    optional: bool = False
    reshape: tuple[int, ...] | None = None
    ragged: bool = False
    labels: tuple[str, ...] = ()


def datatype_of(array: NDArray[np.generic]) -> str:
    """Returns the datatype of a numpy array; str, bytes and object arrays are BYTES.

    Raises:
        ValueError: No datatype has this numpy type.
    """
    found = _OF_NUMPY.get(array.dtype)
    if found is not None:
        return found
    if array.dtype.kind in "SUO":
        return "BYTES"
    found = _OF_NUMPY.get(array.dtype.newbyteorder("="))
    if found is None:
        raise ValueError(f"numpy type {array.dtype} is no tensor datatype")
    return found

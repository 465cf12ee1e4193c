"""Tensors as raw bytes: little-endian rows, and for BYTES each element after its length in 4 bytes.

Numbers are never copied: an array is a view of the buffer it came in, and goes out as a view of its own memory.
Called by both forms of the protocol, by shared memory and by the repository (data files of warm-up samples).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.tensors import NUMPY_TYPES

Buffer = bytes | bytearray | memoryview
_LENGTH = struct.Struct("<I")


class ElementsFault(Exception):
    """The bytes of a BYTES tensor are not its elements.

    Attributes:
        kind: "indicator" for a length that is cut off, "data" for an element that is, "many" or "few" for their number.
        length: What the element's length says, or how many elements there are.
        left: How many bytes there were for it.
    """

    def __init__(self, kind: str, length: int, left: int = 0) -> None:
        super().__init__(kind)
        self.kind = kind
        self.length = length
        self.left = left


def decode_raw(datatype: str, shape: Sequence[int], data: Buffer, what: str) -> NDArray[np.generic]:
    """Returns raw bytes as an array, without a copy of numbers.

    Args:
        datatype: A key of `NUMPY_TYPES`.
        shape: Without negative dimensions.
        data: Exactly the tensor's bytes.
        what: How a message names the tensor, e.g. "input 'X' for model 'm'".

    Raises:
        ServableError: The size of the data is another; code "invalid_argument".
    """
    if datatype == "BYTES":
        return decode_bytes_tensor(data, math.prod(shape), what).reshape(shape)
    kind = NUMPY_TYPES[datatype]
    if len(data) != math.prod(shape) * kind.itemsize:
        raise ServableError(
            "invalid_argument",
            f"unexpected total byte size {len(data)} for {what}, expecting {math.prod(shape) * kind.itemsize}",
        )
    array: NDArray[np.generic] = np.frombuffer(data, kind).reshape(shape)
    return array


def decode_bytes_tensor(data: Buffer, count: int, what: str) -> NDArray[np.generic]:
    """Returns the elements of a BYTES tensor as a flat object array.

    Raises:
        ServableError: There are more or fewer elements, or one is cut off; code "invalid_argument".
    """
    try:
        return split_elements(data, count)
    except ElementsFault as fault:
        texts = {
            "indicator": f"incomplete string length indicator for {what}, expecting 4 bytes",
            "data": f"incomplete string data for {what}, expecting string of length {fault.length} but only "
            f"{fault.left} bytes available",
        }
        counted = f"unexpected number of string elements {fault.length} for {what}, expecting {count}"
        raise ServableError("invalid_argument", texts.get(fault.kind, counted)) from None


def split_elements(data: Buffer, count: int) -> NDArray[np.generic]:
    """Returns the elements of a BYTES tensor as a flat object array.

    Raises:
        ElementsFault: There are more or fewer elements, or one is cut off.
    """
    elements: list[bytes] = []
    at, end = 0, len(data)
    while at < end:
        if end - at < 4:
            raise ElementsFault("indicator", 4, end - at)
        (length,) = _LENGTH.unpack_from(data, at)
        at += 4
        if length > end - at:
            raise ElementsFault("data", length, end - at)
        if len(elements) == count:
            raise ElementsFault("many", count + 1)
        elements.append(bytes(data[at : at + length]))
        at += length
    if len(elements) < count:
        raise ElementsFault("few", len(elements))
    array = np.empty(count, dtype=object)
    array[:] = elements
    return array


def encode_raw(datatype: str, array: NDArray[np.generic]) -> Buffer:
    """Returns an array's raw bytes: a view where it is contiguous, so its memory must not change until it is sent."""
    if datatype == "BYTES":
        return encode_bytes_tensor(array)
    if not array.flags.c_contiguous:
        array = np.ascontiguousarray(array)
    base: object = array.base
    if isinstance(base, bytes) and len(base) == array.nbytes:
        return base  # it is a view of the whole of it
    return array.reshape(-1).view(np.uint8).data if array.size else b""


def encode_bytes_tensor(array: NDArray[np.generic]) -> bytes:
    """Returns a BYTES tensor's elements, each after its length."""
    parts: list[bytes] = []
    pack = _LENGTH.pack
    elements: list[Any] = array.reshape(-1).tolist()
    for element in elements:
        data = element if isinstance(element, bytes) else str(element).encode()
        parts.append(pack(len(data)))
        parts.append(data)
    return b"".join(parts)

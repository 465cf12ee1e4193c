"""Tensors whose elements stand in JSON: flat or nested lists to arrays, and arrays to lists."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millpond.serve.kserve.parameters import ClientFault, FieldError
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.tensors import NUMPY_TYPES, Tensor

_MISMATCH = "Shape does not match true shape of 'data' field"
_WHOLE = "attempt to access JSON non-signed-integer as signed-integer"
_NATURAL = "attempt to access JSON non-unsigned-integer as unsigned-integer"


def tensor_from_json(name: str, datatype: str, data: Sequence[Any], count: int, *, is_strict: bool) -> NDArray[Any]:
    """Returns the elements of a tensor as a flat array.

    Args:
        name: Of the input, for messages.
        datatype: A key of `NUMPY_TYPES`.
        data: Lists, nested in any way.
        count: How many elements the shape says there are.
        is_strict: Whether an integer that does not fit is an error; Triton cuts it off.

    Raises:
        ServableError: Elements are of another type or another number.
    """
    if datatype in ("FP16", "BF16"):
        raise ServableError(
            "invalid_argument",
            f"receiving {datatype} data via JSON is not supported. Please use the binary data format for input {name}",
        )
    flat = _flatten(data)
    types = set(map(type, flat))
    array = _convert(datatype, flat, types, is_strict=is_strict)
    if len(flat) != count:
        raise FieldError("data", _MISMATCH)
    return array


def list_from_tensor(tensor: Tensor) -> list[Any]:
    """Returns a tensor's elements as a flat list that JSON can hold.

    Raises:
        ServableError: The datatype has no form in JSON.
    """
    if tensor.datatype in ("FP16", "BF16"):
        raise ServableError(
            "invalid_argument",
            f"sending {tensor.datatype} data via JSON is not supported. Please use the binary data format for output",
        )
    elements: list[Any] = tensor.array.reshape(-1).tolist()
    if tensor.datatype == "BYTES":
        return [item.decode("utf-8", "replace") if isinstance(item, bytes) else str(item) for item in elements]
    return elements


def _flatten(data: Sequence[Any]) -> Sequence[Any]:
    flat = data
    while any(type(item) is list for item in flat[:1]) or (flat and list in set(map(type, flat))):
        flat = list(chain.from_iterable(item if type(item) is list else (item,) for item in flat))
    return flat


def _convert(datatype: str, flat: Sequence[Any], types: set[type], *, is_strict: bool) -> NDArray[Any]:
    if datatype == "BYTES":
        if not types <= {str}:
            raise ClientFault("Unable to parse JSON bytes array: attempt to access JSON non-string as string")
        array = np.empty(len(flat), dtype=object)
        array[:] = [item.encode("utf-8", "surrogatepass") for item in flat]
        return array
    if datatype == "BOOL":
        if not types <= {bool}:
            raise FieldError("data", "attempt to access JSON non-boolean as boolean")
        return np.array(flat, dtype=np.bool_)
    kind = NUMPY_TYPES[datatype]
    if kind.kind == "f":
        return _floats(flat, types, kind)
    words = _NATURAL if kind.kind == "u" else _WHOLE
    if not types <= {int}:
        raise FieldError("data", words)
    try:
        wide = np.array(flat, dtype=np.uint64 if kind.kind == "u" else np.int64)
    except OverflowError:
        raise FieldError("data", words) from None
    narrow = wide.astype(kind)
    if is_strict and not np.array_equal(narrow, wide):
        raise FieldError("data", f"a number does not fit {datatype}")
    return narrow


def _floats(flat: Sequence[Any], types: set[type], kind: np.dtype[Any]) -> NDArray[Any]:
    if not types <= {int, float}:
        raise FieldError("data", "attempt to access JSON non-number as double")
    try:
        with np.errstate(over="ignore"):
            return np.array(flat, dtype=np.float64).astype(kind)
    except OverflowError:
        raise FieldError("data", "attempt to access JSON non-number as double") from None

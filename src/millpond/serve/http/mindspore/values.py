"""JSON values to `Value`s, by the protocol's rules.

An integer is int32, a real float32, a bool and a string themselves; arrays are rectangular and of one element type;
`{"b64": ..., "type": ..., "shape": ...}` is raw bytes. Raises `CallError` with the original's texts. Unlike there, an
integer that does not fit int32 is an error and not another integer.
"""

from __future__ import annotations

import base64
import binascii
import math
from typing import Any

import numpy as np

from millpond.serve.mindspore.calls import INVALID_INPUTS, CallError
from millpond.serve.mindspore.values import Value, make_text

_B64_KEYS = ("b64", "type", "shape")
_TYPES = {
    **{name: name for name in ("int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")},
    **{name: name for name in ("float16", "float32", "float64")},
    "fp16": "float16",
    "fp32": "float32",
    "fp64": "float64",
    "bool": "bool",
    "str": "str",
    "bytes": "bytes",
}
_OF_PYTHON: dict[type, str] = {int: "int32", float: "float32", bool: "bool"}
_INT32 = 2**31
_MAX_DIMS = 32  # numpy's own limit is a little higher


def parse_value(value: Any) -> Value:
    """Returns what a JSON value means.

    Raises:
        CallError: It means nothing.
    """
    if isinstance(value, dict):
        return _parse_object(value)
    if isinstance(value, list):
        return _parse_array(value)
    if isinstance(value, str):
        return make_text(_encode(value), "string")
    if value is None:
        raise _invalid("json value is null, it is not supported")
    return Value("tensor", _make_array([value], _OF_PYTHON[type(value)], ()))


def _invalid(message: str) -> CallError:
    return CallError(INVALID_INPUTS, message)


def _encode(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise _invalid("json string, it is not valid UTF-8") from None


def _make_array(values: list[Any], dtype: str, shape: tuple[int, ...]) -> Any:
    if dtype == "int32" and any(not -_INT32 <= value < _INT32 for value in values):
        raise _invalid("json value, integer is out of range of int32; send {'b64', 'type', 'shape'} for other types")
    with np.errstate(over="ignore"):  # too large for float32 is infinity, as a cast gives
        return np.array(values, dtype=dtype).reshape(shape)


def _parse_array(value: list[Any]) -> Value:
    shape, first = _shape_of(value)
    if not shape:
        raise _invalid("json array, shape is empty")
    is_text = isinstance(first, str) or (isinstance(first, dict) and first.get("type", "bytes") in ("str", "bytes"))
    if not is_text and not isinstance(first, (bool, int, float, dict)):
        raise _invalid("json array, data type is unknown")
    if is_text and math.prod(shape) != 1:
        raise _invalid("json array, string or bytes type only support one item")
    if isinstance(first, dict) and not is_text:
        known = isinstance(first.get("type"), str) and first["type"] in _TYPES
        raise _invalid(
            "json array, item is object type, object only support string or bytes type"
            if known
            else "json array, data type is unknown"
        )
    flat = _flatten(value, shape)
    if is_text:
        text = _parse_object(first) if isinstance(first, dict) else make_text(_encode(first), "string")
        return Value(text.kind, text.array.reshape(shape))
    kinds = set(map(type, flat))
    if not kinds <= {int, float, bool, str}:
        raise _invalid("json array, data should be number, bool, string or bytes")
    if len(kinds) > 1:
        raise _invalid("json array, elements type is not equal")
    return Value("tensor", _make_array(flat, _OF_PYTHON[kinds.pop()], shape))


def _shape_of(value: Any) -> tuple[tuple[int, ...], Any]:
    """Returns the lengths along the first elements, and the first element that is no array."""
    shape: list[int] = []
    while isinstance(value, list):
        if not value:
            return (tuple(shape), None) if shape else ((), None)
        shape.append(len(value))
        value = value[0]
        if len(shape) > _MAX_DIMS:
            raise _invalid(f"json array, more than {_MAX_DIMS} dims")
    return tuple(shape), value


def _flatten(value: list[Any], shape: tuple[int, ...]) -> list[Any]:
    level = [value]
    for depth, size in enumerate(shape):
        for item in level:
            if not isinstance(item, list):
                raise _invalid("invalid json array: json type is not array")
            if len(item) != size:
                raise _invalid(f"invalid json array: json size is {len(item)}, the dim {depth} expected to be {size}")
        level = [child for item in level for child in item]
    return level


def _parse_object(value: dict[str, Any]) -> Value:
    _check_object(value)
    kind = _TYPES[value.get("type", "bytes")]
    shape = tuple(value.get("shape", ()))
    num_elements = math.prod(shape)
    if kind in ("str", "bytes") and num_elements != 1:
        raise _invalid(
            "json object, only support scalar when data type is string or bytes, please check 'type' or 'shape'"
        )
    content = _decode(value["b64"])
    if kind in ("str", "bytes"):
        return make_text(content, "string" if kind == "str" else "bytes", shape)
    dtype = np.dtype(kind)
    if len(content) != num_elements * dtype.itemsize:
        raise _invalid(
            f"size is not matched, decode base64 size:{len(content)}; Given info: type:{kind}; type size:"
            f"{dtype.itemsize}; element nums:{num_elements}"
        )
    if kind == "bool":
        return Value("tensor", (np.frombuffer(content, dtype=np.uint8) != 0).reshape(shape))
    return Value("tensor", np.frombuffer(content, dtype=dtype.newbyteorder("<")).reshape(shape))


def _check_object(value: dict[str, Any]) -> None:
    if not value:
        raise _invalid("json object, value is empty")
    if len(value) > len(_B64_KEYS):
        raise _invalid("json object, items size is more than 3, only support specified ['b64', 'type', 'shape']")
    for key, item in value.items():
        if key not in _B64_KEYS:
            raise _invalid(f"json object, key is not ['b64', 'type', 'shape'], fail key:{key}")
        if key == "type" and not isinstance(item, str):
            raise _invalid("json object, key is 'type', value should be string type")
        if key == "type" and item not in _TYPES:
            raise _invalid(f"json object, specified type:'{item}' is illegal")
        if key == "shape":
            _check_shape(item)
    if "b64" not in value:
        raise _invalid("json object, 'b64' should be specified only one time")


def _check_shape(shape: Any) -> None:
    if not isinstance(shape, list):
        raise _invalid("json object, key is 'shape', value should be array type")
    if len(shape) > _MAX_DIMS:
        raise _invalid(f"json object, key is 'shape', more than {_MAX_DIMS} dims")
    shown = str(shape).replace(" ", "")
    for index, size in enumerate(shape):
        if index and shape[index - 1] == 0:
            raise _invalid(f"json object, key is 'shape', invalid shape value {shown}")
        if isinstance(size, bool) or not isinstance(size, int) or size < 0:
            raise _invalid("json object, key is 'shape', array value should be unsigned integer")
        if size >= _INT32:
            raise _invalid(
                f"json object, key is 'shape', number value should not be negative number, shape value: {shown}"
            )


def _decode(text: Any) -> bytes:
    if not isinstance(text, str):
        raise _invalid("get scalar data failed, type is string, but json is not string type")
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _invalid(f"'{text[:64]}' is illegal b64 encode string") from None

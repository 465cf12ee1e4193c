"""Tensors as they are typed on a command line and printed: `NAME=VALUE` with the server's datatype and shape.

A value is JSON, or text where it is not. Owns the raw form of the Open Inference Protocol's tensors too, for gRPC.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millpond.base.errors import ConfigError
from millpond.base.suggest import did_you_mean
from millpond.serve.servables.tensors import NUMPY_TYPES, Tensor


def read_inputs(given: Sequence[str], described: Mapping[str, tuple[str, Sequence[int]]]) -> list[Tensor]:
    """Returns the tensors that `NAME=VALUE` flags mean.

    Args:
        given: The flags.
        described: Datatype and shape of every input, as the server tells them.

    Raises:
        ConfigError: A flag has no such form, names no input, or its value does not fit.
    """
    tensors = []
    for flag in given:
        name, sign, text = flag.partition("=")
        if not sign:
            raise ConfigError(f"'{flag}' is no input.", fix="Write NAME=VALUE; VALUE is JSON or text.")
        if name not in described:
            near = did_you_mean(name, described)
            raise ConfigError(f"The model has no input '{name}'. {near}".strip(), fix=f"It has {', '.join(described)}.")
        datatype, shape = described[name]
        tensors.append(Tensor(name, datatype, _array(name, text, datatype, shape)))
    return tensors


def show(tensor: Tensor) -> str:
    """Returns a tensor as one line."""
    dims = ",".join(map(str, tensor.array.shape))
    return f"{tensor.name} {tensor.datatype}[{dims}] {json.dumps(as_json(tensor), ensure_ascii=False)}"


def as_json(tensor: Tensor) -> Any:
    """Returns a tensor's values as nested lists; bytes as text."""
    if tensor.datatype != "BYTES":
        return tensor.array.tolist()
    texts = [value.decode("utf-8", "replace") for value in tensor.array.reshape(-1).tolist()]
    array = np.empty(len(texts), dtype=object)
    array[:] = texts
    return array.reshape(tensor.array.shape).tolist()


def pack(tensor: Tensor) -> bytes:
    """Returns a tensor's raw content: little-endian, row by row; an element of bytes after its length."""
    if tensor.datatype != "BYTES":
        return tensor.array.tobytes()
    values = tensor.array.reshape(-1).tolist()
    return b"".join(len(value).to_bytes(4, "little") + value for value in values)


def unpack(name: str, datatype: str, shape: Sequence[int], raw: bytes) -> Tensor:
    """Returns the tensor of a raw content."""
    if datatype != "BYTES":
        return Tensor(name, datatype, np.frombuffer(raw, dtype=NUMPY_TYPES[datatype]).reshape(tuple(shape)))
    values: list[bytes] = []
    place = 0
    while place + 4 <= len(raw):
        end = place + 4 + int.from_bytes(raw[place : place + 4], "little")
        values.append(raw[place + 4 : end])
        place = end
    return bytes_tensor(name, values, shape)


def bytes_tensor(name: str, values: Sequence[bytes], shape: Sequence[int]) -> Tensor:
    """Returns a BYTES tensor of the values."""
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return Tensor(name, "BYTES", array.reshape(tuple(shape)))


def _array(name: str, text: str, datatype: str, shape: Sequence[int]) -> NDArray[np.generic]:
    try:
        value = text if datatype == "BYTES" and not text.startswith("[") else json.loads(text)
        if datatype == "BYTES":
            array = np.asarray(value, dtype=str)
            array = bytes_tensor(name, [each.encode("utf-8") for each in array.reshape(-1).tolist()], array.shape).array
        else:
            array = np.asarray(value).astype(
                NUMPY_TYPES[datatype], casting="same_kind" if datatype != "BOOL" else "safe"
            )
    except (ValueError, TypeError, KeyError, OverflowError):
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        raise ConfigError(f"The input {name} cannot be {datatype} from '{shown}'.", fix="Give JSON, or text.") from None
    while array.ndim < len(shape):
        array = array[np.newaxis]
    return array

"""Values of one instance: arrays of a request checked against a method's inputs, results of stages as arrays."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.tensors import NUMPY_TYPES, Tensor, TensorSpec, datatype_of


def check_input(tensor: Tensor, spec: TensorSpec) -> None:
    """Raises `ServableError` when an instance's input is not what the method takes; "" takes anything."""
    if not spec.datatype:
        return
    if tensor.datatype != spec.datatype:
        raise ServableError(
            "invalid_argument", f"Input '{spec.name}' is of type {tensor.datatype}; the method takes {spec.datatype}."
        )
    if not _fits(tensor.array.shape, spec.dims):
        raise ServableError(
            "invalid_argument",
            f"Input '{spec.name}' has shape {list(tensor.array.shape)}; the method takes {list(spec.dims)}.",
        )


def to_array(value: Any, spec: TensorSpec) -> NDArray[Any]:
    """Returns a stage's result as the array of an output.

    Raises:
        ServableError: It is not what the output promises.
    """
    array = _bytes_array(value) if _is_text(value) else np.asarray(value)
    if array.dtype.kind in "SU":
        array = _bytes_array(array)
    if not spec.datatype:
        try:
            datatype_of(array)
        except ValueError:
            raise ServableError(
                "internal", f"Output '{spec.name}' is of type {type(value).__name__}, which cannot be sent."
            ) from None
        return array
    wanted = NUMPY_TYPES[spec.datatype]
    if array.dtype != wanted:
        if not np.can_cast(array.dtype, wanted, "same_kind"):
            raise ServableError(
                "internal", f"Output '{spec.name}' is of type {array.dtype}; the method promises {spec.datatype}."
            )
        array = array.astype(wanted)
    if not array.ndim and spec.dims in ((1,), (-1,)):
        array = array.reshape(1)
    if not _fits(array.shape, spec.dims):
        raise ServableError(
            "internal", f"Output '{spec.name}' has shape {list(array.shape)}; the method promises {list(spec.dims)}."
        )
    return array


def _fits(shape: tuple[int, ...], dims: tuple[int, ...]) -> bool:
    return len(shape) == len(dims) and all(dim in (-1, size) for size, dim in zip(shape, dims, strict=True))


def _is_text(value: Any) -> bool:
    if isinstance(value, str | bytes):
        return True
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(item, str | bytes) for item in value)


def _bytes_array(value: Any) -> NDArray[np.object_]:
    items = value.ravel().tolist() if isinstance(value, np.ndarray) else value
    shape = value.shape if isinstance(value, np.ndarray) else () if isinstance(value, str | bytes) else (len(value),)
    flat = np.empty(int(np.prod(shape)), np.object_)
    flat[:] = [_encoded(item) for item in ([items] if isinstance(items, str | bytes) else items)]
    return flat.reshape(shape)


def _encoded(item: Any) -> bytes:
    return item if isinstance(item, bytes) else str(item).encode()

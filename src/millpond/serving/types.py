"""Types of a method's parameters and results: annotations as tensor specifications, arrays as Python values.

`int`, `float`, `bool`, `str` and `bytes` are tensors of one element; `NDArray[np.float32]` is a vector of any length
and `Annotated[NDArray[np.float32], Shape(3, -1)]` has that shape. Sizes are those of one instance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin

import numpy as np

from millpond.serve.servables.tensors import TensorSpec, datatype_of

_SCALARS: dict[type, str] = {int: "INT64", float: "FP64", bool: "BOOL", str: "BYTES", bytes: "BYTES"}


@dataclass(frozen=True, slots=True, init=False)
class Shape:
    """The sizes of an array's dimensions; -1 is any size."""

    dims: tuple[int, ...]

    def __init__(self, *dims: int) -> None:
        object.__setattr__(self, "dims", dims)


@dataclass(frozen=True, slots=True)
class ValueType:
    """What an annotation means.

    Attributes:
        datatype: Of the tensor.
        dims: Of one instance.
        scalar: The Python type of a single element; None for arrays.
    """

    datatype: str
    dims: tuple[int, ...]
    scalar: type | None = None

    def spec(self, name: str, *, optional: bool = False) -> TensorSpec:
        """Returns the specification of an input or output of this type."""
        return TensorSpec(name, self.datatype, self.dims, optional=optional)

    def value_of(self, array: Any) -> Any:
        """Returns an instance's array as the function gets it.

        Raises:
            ValueError: Bytes for a `str` are not UTF-8.
        """
        if self.scalar is None:
            return array
        item = array.reshape(-1)[0]
        if self.scalar is str:
            return item.decode() if isinstance(item, bytes) else str(item)
        return self.scalar(item)


def value_type(annotation: Any, where: str) -> ValueType:
    """Returns what an annotation means.

    Raises:
        TypeError: It is none of those that can be sent.
    """
    shape = Shape(-1)
    if get_origin(annotation) is Annotated:
        annotation, *extras = get_args(annotation)
        shape = next((extra for extra in extras if isinstance(extra, Shape)), shape)
    if isinstance(annotation, type) and annotation in _SCALARS:
        return ValueType(_SCALARS[annotation], (1,), annotation)
    if get_origin(annotation) is np.ndarray:
        element = get_args(get_args(annotation)[1])[0]
        if isinstance(element, type):
            try:
                return ValueType(datatype_of(np.empty(0, element)), shape.dims)
            except (TypeError, ValueError):
                pass
    shown = getattr(annotation, "__name__", str(annotation))
    raise TypeError(
        f"{where} is annotated {shown}: use int, float, bool, str, bytes, NDArray[np.float32] or another element type, "
        "or Annotated[NDArray[...], Shape(...)]"
    )


def item_of(annotation: Any, origins: tuple[Any, ...]) -> Any | None:
    """Returns T of `list[T]`, `Iterator[T]` and such, None when the annotation is none of `origins`."""
    if get_origin(annotation) in origins:
        return get_args(annotation)[0]
    return None

"""Classification: an output as its largest values, each with its index and label."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.tensors import Tensor, TensorSpec


def classify(tensor: Tensor, count: int, spec: TensorSpec | None, *, has_batch: bool) -> Tensor:
    """Returns the `count` largest values of each row as a BYTES tensor of "value:index[:label]".

    Raises:
        ServableError: The tensor does not hold numbers.
    """
    if tensor.datatype in ("BYTES", "BF16", "FP16", "BOOL"):
        raise ServableError(
            "invalid_argument", f"class result not available for output due to unsupported type '{tensor.datatype}'"
        )
    array = tensor.array
    num_rows = array.shape[0] if has_batch and array.ndim else 1
    rows = array.reshape(num_rows, math.prod(array.shape[1:]) if has_batch else array.size)
    count = min(count, rows.shape[1])
    labels = spec.labels if spec is not None else ()
    result = np.empty((num_rows, count), dtype=object)
    for at, row in enumerate(rows):
        result[at] = _largest(row, count, labels)
    return Tensor(tensor.name, "BYTES", result if has_batch else result.reshape(count))


def _largest(row: NDArray[np.generic], count: int, labels: tuple[str, ...]) -> list[bytes]:
    if row.dtype.kind in "bf":
        keys: NDArray[Any] = -row.astype(np.float64)
    else:
        keys = np.invert(row)  # sorts the other way round and cannot overflow
    order = np.argsort(keys, kind="stable")[:count]
    found = []
    for index in order.tolist():
        value = row[index]
        text = f"{float(value):f}" if row.dtype.kind == "f" else f"{int(value)}"
        text += f":{index}"
        if index < len(labels) and labels[index]:
            text += f":{labels[index]}"
        found.append(text.encode())
    return found

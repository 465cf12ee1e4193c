"""`classify`: an output as its largest values with their indexes and labels, for the classification extension."""

from __future__ import annotations

import numpy as np

from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.tensors import Tensor, TensorSpec

_UNSUPPORTED = ("BOOL", "BYTES", "FP16", "BF16")


def classify(tensor: Tensor, spec: TensorSpec, count: int, *, has_batch: bool) -> Tensor:
    """Returns "value:index" or "value:index:label" of the `count` largest values, of each row if there is a batch.

    Raises:
        ServableError: The datatype has no order, or `count` is not positive.
    """
    if tensor.datatype in _UNSUPPORTED:
        kind = "TYPE_STRING" if tensor.datatype == "BYTES" else f"TYPE_{tensor.datatype}"
        raise ServableError(
            "invalid_argument", f"class result not available for output due to unsupported type '{kind}'"
        )
    if count < 1:
        raise ServableError("invalid_argument", f"the number of classes of output '{tensor.name}' must be at least 1")
    rows = tensor.array.reshape(tensor.array.shape[0] if has_batch else 1, -1)
    count = min(count, rows.shape[1])
    is_float = tensor.datatype.startswith("FP")
    made = np.empty((rows.shape[0], count), dtype=object)
    for number, row in enumerate(rows):
        # A stable sort from the back: of equal values the one with the smaller index comes first.
        order = (row.size - 1 - np.argsort(row[::-1], kind="stable"))[::-1][:count]
        for place, index in enumerate(order):
            value = f"{row[index]:f}" if is_float else str(int(row[index]))
            label = f":{spec.labels[index]}" if index < len(spec.labels) and spec.labels[index] else ""
            made[number, place] = f"{value}:{index}{label}".encode()
    return Tensor(tensor.name, "BYTES", made if has_batch else made[0])

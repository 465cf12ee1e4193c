"""Tensors whose bytes are not as many as their shape says.

Triton looks at names, types and shapes of a whole request before it counts bytes, so such a fault waits until the rest
of the request was found right. Called by the readers of both forms of the protocol.
"""

from __future__ import annotations

import math

import numpy as np

from millpond.serve.kserve.raw import Buffer, decode_raw
from millpond.serve.servables.checking import prefix_of
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest
from millpond.serve.servables.servable import Servable
from millpond.serve.servables.tensors import NUMPY_TYPES, Tensor


class LateFaults:
    """The last fault of this kind in one request."""

    __slots__ = ("_found",)

    def __init__(self) -> None:
        self._found: tuple[str, int, int] | None = None

    def decode(self, name: str, datatype: str, shape: tuple[int, ...], data: Buffer, what: str) -> Tensor:
        """Returns raw bytes as a tensor; when there are too few or too many, one of that shape without content."""
        if datatype != "BYTES":
            expected = math.prod(shape) * NUMPY_TYPES[datatype].itemsize
            if len(data) != expected:
                return self.add(name, datatype, shape, len(data))
        return Tensor(name, datatype, decode_raw(datatype, shape, data, what))

    def add(self, name: str, datatype: str, shape: tuple[int, ...], byte_size: int) -> Tensor:
        """Keeps a fault, and returns a tensor without content."""
        kind = NUMPY_TYPES[datatype]
        # Triton walks its inputs from the last one: that is the one it names.
        self._found = (name, math.prod(shape) * kind.itemsize, byte_size)
        return Tensor(name, datatype, np.broadcast_to(np.zeros((), kind), shape))

    def check(self, servable: Servable, request: InferRequest) -> None:
        """Raises the fault, unless something else is wrong with the request.

        Raises:
            ServableError: There is a fault; code "invalid_argument".
        """
        if self._found is None:
            return
        servable.check(request)
        name, expected, found = self._found
        raise ServableError(
            "invalid_argument",
            f"{prefix_of(request)}input byte size mismatch for input '{name}' for model '{request.model}'. "
            f"Expected {expected}, got {found}",
        )

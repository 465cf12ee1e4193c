"""Tensors whose bytes are not those that their shape needs.

Triton looks at names, types and shapes of a whole request before it counts bytes, so such a fault waits until the rest
of the request was found right. Called by the readers of both forms of the protocol.
"""

from __future__ import annotations

import math

import numpy as np

from millpond.serve.kserve.raw import Buffer, ElementsFault, decode_raw, split_elements
from millpond.serve.servables.checking import prefix_of
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest
from millpond.serve.servables.servable import Servable
from millpond.serve.servables.tensors import NUMPY_TYPES, Tensor


class LateFaults:
    """The last fault of this kind in one request."""

    __slots__ = ("_found",)

    def __init__(self) -> None:
        self._found: str | None = None

    def decode(self, name: str, datatype: str, shape: tuple[int, ...], data: Buffer, what: str) -> Tensor:
        """Returns raw bytes as a tensor; when there are too few or too many, one of that shape without content."""
        if datatype == "BYTES":
            return self._decode_elements(name, shape, data)
        expected = math.prod(shape) * NUMPY_TYPES[datatype].itemsize
        if len(data) != expected:
            return self.add(name, datatype, shape, len(data))
        return Tensor(name, datatype, decode_raw(datatype, shape, data, what))

    def add(self, name: str, datatype: str, shape: tuple[int, ...], byte_size: int) -> Tensor:
        """Keeps a fault, and returns a tensor without content."""
        kind = NUMPY_TYPES[datatype]
        # Triton walks its inputs from the last one: that is the one it names.
        self._found = (
            f"{{prefix}}input byte size mismatch for input '{name}' for model '{{model}}'. "
            f"Expected {math.prod(shape) * kind.itemsize}, got {byte_size}"
        )
        return Tensor(name, datatype, np.broadcast_to(np.zeros((), kind), shape))

    def check(self, servable: Servable, request: InferRequest) -> None:
        """Raises the fault, unless something else is wrong with the request.

        Raises:
            ServableError: There is a fault; code "invalid_argument".
        """
        if self._found is None and servable.config.max_batch_size > 0:
            self._find_no_rows(request)
        if self._found is None:
            return
        servable.check(request)
        text = self._found.replace("{prefix}", prefix_of(request)).replace("{model}", request.model)
        raise ServableError("invalid_argument", text)

    def _find_no_rows(self, request: InferRequest) -> None:
        """A batch of no rows has, in Triton's eyes, fewer bytes than its shape without the batch needs."""
        for tensor in request.inputs.values():
            shape = tensor.array.shape
            if shape and not shape[0] and (count := math.prod(shape[1:])):
                if tensor.datatype == "BYTES":
                    self._found = _words(ElementsFault("few", 0), f"inference input '{tensor.name}'", count)
                else:
                    self.add(tensor.name, tensor.datatype, shape[1:], 0)

    def _decode_elements(self, name: str, shape: tuple[int, ...], data: Buffer) -> Tensor:
        count = math.prod(shape)
        try:
            return Tensor(name, "BYTES", split_elements(data, count).reshape(shape))
        except ElementsFault as fault:
            self._found = _words(fault, f"inference input '{name}'", count)
        return Tensor(name, "BYTES", np.broadcast_to(np.array(b"", object), shape))


def _words(fault: ElementsFault, what: str, count: int) -> str:
    match fault.kind:
        case "data":
            return (
                f"incomplete string data for {what}, expecting string of length {fault.length} but only {fault.left} "
                "bytes available"
            )
        case "indicator":
            return (
                f"{{prefix}}incomplete string length indicator for {what} for model '{{model}}', expecting 4 bytes but "
                f"only {fault.left} bytes available. Please make sure the string length indicator is in one buffer."
            )
        case "many":
            return (
                f"{{prefix}}unexpected number of string elements {fault.length} for {what} for model '{{model}}', "
                f"expecting {count}"
            )
    return f"{{prefix}}expected {count} string elements for {what} for model '{{model}}', got {fault.length}"

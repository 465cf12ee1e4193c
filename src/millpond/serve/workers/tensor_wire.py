"""Tensors to messages and back: few bytes go in the message, many through an arena.

`TensorPort` is one side's pair of arenas; the gateway and the worker each have one. BYTES travel as Triton's elements:
a little-endian length of four bytes, then the element. Not thread-safe: callers hold their own lock.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from millpond.serve.servables.messages import InferRequest
from millpond.serve.servables.tensors import NUMPY_TYPES, Tensor
from millpond.serve.workers.arena import ArenaReader, ArenaWriter
from millpond.serve.workers.loans import Loans
from millpond.serve.workers.wire import FLAG_SEQUENCE_END, FLAG_SEQUENCE_START, RequestWire, TensorWire


class TensorPort:
    """Packs tensors for the other side and unpacks its own.

    Args:
        writer: Where tensors to the other side go.
        reader: Where tensors of the other side are.
        inline_bytes: A tensor of at most so many bytes travels in the message.
        writable: Whether unpacked arrays may be changed by whoever gets them.
    """

    def __init__(self, writer: ArenaWriter, reader: ArenaReader, inline_bytes: int, *, writable: bool) -> None:
        self.writer = writer
        self.reader = reader
        self.loans = Loans(writer)
        self._inline_bytes = inline_bytes
        self._writable = writable

    def pack(self, tensor: Tensor) -> TensorWire:
        """Returns the tensor as a message part; one that finds no room in the arena goes in the message."""
        array, datatype = tensor.array, tensor.datatype
        shape = list(array.shape)
        if datatype == "BYTES":
            data = encode_elements(array)
            offset = self.writer.allocate(len(data)) if len(data) > self._inline_bytes else None
            if offset is None:
                return TensorWire(tensor.name, "BYTES", shape, data)
            self.writer.write_bytes(offset, data)
            return TensorWire(tensor.name, "BYTES", shape, b"", offset, len(data))
        size = array.nbytes
        if size <= self._inline_bytes:
            return TensorWire(tensor.name, datatype, shape, array.tobytes())
        offset = self.loans.send(array)
        if offset is None:
            offset = self.writer.allocate(size)
            if offset is None:
                return TensorWire(tensor.name, tensor.datatype, shape, array.tobytes())
            self.writer.write(offset, array)
        return TensorWire(tensor.name, tensor.datatype, shape, b"", offset, size)

    def pack_request(self, request: InferRequest) -> RequestWire:
        """Returns a request as a message part."""
        sequence = request.sequence
        key: int | str = 0
        flags = 0
        if sequence is not None:
            key = sequence.key
            flags = FLAG_SEQUENCE_START * sequence.start | FLAG_SEQUENCE_END * sequence.end
        inputs = []
        for tensor in request.inputs.values():  # a comprehension would be one more call
            inputs.append(self.pack(tensor))
        return RequestWire(
            request.model,
            inputs,
            request.request_id,
            request.outputs,
            request.parameters,
            key,
            flags,
            request.timeout_us,
            request.priority,
            -1 if request.version is None else request.version,
            request.method,
        )

    def unpack(self, wire: TensorWire) -> Tensor:
        """Returns the tensor of a message part; its array may be a view on the arena."""
        array: NDArray[np.generic]
        datatype, data = wire.datatype, wire.data
        if wire.offset < 0 and datatype != "BYTES":
            array = np.ndarray(wire.shape, NUMPY_TYPES[datatype], bytearray(data) if self._writable else data)
        elif datatype == "BYTES":
            data = data if wire.offset < 0 else self.reader.view(wire.offset, wire.size).tobytes()
            array = decode_elements(data, wire.shape)
        else:
            view = self.reader.view(wire.offset, wire.size)
            array = view.view(NUMPY_TYPES[datatype]).reshape(wire.shape)
        return Tensor(wire.name, datatype, array)

    def discard(self, wires: Iterable[TensorWire]) -> None:
        """Takes back packed tensors whose message was not sent."""
        self.release(wire.offset for wire in wires if wire.offset >= 0)

    def release(self, offsets: Iterable[int]) -> None:
        """Takes note of places that the other side has read."""
        for offset in offsets:
            if not self.loans.free(offset):
                self.writer.free(offset)


def encode_elements(array: NDArray[np.generic]) -> bytes:
    """Returns an array of bytes or text as length-prefixed elements; anything else in it goes by its `str`."""
    parts: list[bytes] = []
    for item in array.ravel().tolist():
        element = item if isinstance(item, bytes) else str(item).encode()
        parts.append(len(element).to_bytes(4, "little"))
        parts.append(element)
    return b"".join(parts)


def decode_elements(data: bytes, shape: Iterable[int] | None) -> NDArray[np.object_]:
    """Returns length-prefixed elements as an object array of bytes; flat when `shape` is None.

    Raises:
        ValueError: The lengths do not add up, or not to that shape.
    """
    elements: list[bytes] = []
    at = 0
    while at < len(data):
        start = at + 4
        at = start + int.from_bytes(data[at:start], "little")
        if at > len(data):
            raise ValueError(f"the element at byte {start - 4} is longer than the {len(data)} bytes there are")
        elements.append(data[start:at])
    array = np.empty(len(elements), np.object_)
    array[:] = elements
    return array if shape is None else array.reshape(tuple(shape))

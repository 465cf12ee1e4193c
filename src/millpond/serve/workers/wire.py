"""The messages between a gateway and a worker process, and the frames they travel in.

Knows bytes, not sockets. Both sides are of the same version, so fields go by position; a tensor's bytes are in the
message when they are few and in the sender's arena otherwise (`tensor_wire`).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Any

import msgspec

from millpond.serve.servables.errors import ErrorCode
from millpond.serve.servables.messages import Parameter

MAX_FRAME_BYTES = 1 << 30  # a length past this is a broken stream, not a message
FLAG_SEQUENCE_START = 1
FLAG_SEQUENCE_END = 2
_HEADER = struct.Struct("<I")


class TensorWire(msgspec.Struct, array_like=True, frozen=True):
    """A tensor. `offset` is its place in the sender's arena, or -1 when `data` holds its bytes; `size` counts bytes."""

    name: str
    datatype: str
    shape: list[int]
    data: bytes
    offset: int = -1
    size: int = 0


class ErrorWire(msgspec.Struct, array_like=True, frozen=True):
    """A `ServableError`."""

    code: ErrorCode
    message: str


class RequestWire(msgspec.Struct, array_like=True, frozen=True):
    """An `InferRequest`; `key` is the sequence's, 0 when there is none. A version of -1 is the newest."""

    model: str
    inputs: list[TensorWire]
    request_id: str = ""
    outputs: tuple[str, ...] | None = None
    parameters: dict[str, Parameter] = {}
    key: int | str = 0
    flags: int = 0
    timeout_us: int = 0
    priority: int = 0
    version: int = -1
    method: str = ""


class ResponseWire(msgspec.Struct, array_like=True, frozen=True):
    """An `InferResponse` to request `index` of an execution; with `again`, the wish that the request runs once more."""

    index: int
    outputs: list[TensorWire]
    parameters: dict[str, Parameter] = {}
    error: ErrorWire | None = None
    final: bool = True
    again: bool = False


class Hello(msgspec.Struct, tag=0, array_like=True, frozen=True):
    """The first message to a worker: which runner, for what, and how its tensors travel."""

    name: str
    runner: str
    arguments: dict[str, Any]
    inline_bytes: int
    arena_bytes: int


class Execute(msgspec.Struct, tag=1, array_like=True, frozen=True):
    """A batch. `freed` are places in the worker's arena that nobody reads any more."""

    execution: int
    requests: list[RequestWire]
    freed: list[int] = []


class Cancel(msgspec.Struct, tag=2, array_like=True, frozen=True):
    """Nobody waits for this request any more."""

    execution: int
    index: int


class CallReply(msgspec.Struct, tag=3, array_like=True, frozen=True):
    """A response to a `Call`."""

    call: int
    response: ResponseWire
    freed: list[int] = []


class Answer(msgspec.Struct, tag=4, array_like=True, frozen=True):
    """The answer to an `Ask`."""

    call: int
    value: Any = None
    error: ErrorWire | None = None


class Freed(msgspec.Struct, tag=5, array_like=True, frozen=True):
    """Places in the receiver's arena that nobody reads any more."""

    offsets: list[int]


class Close(msgspec.Struct, tag=6, array_like=True, frozen=True):
    """Finish and exit."""


class Ready(msgspec.Struct, tag=10, array_like=True, frozen=True):
    """The model is loaded; `info` is what its runner says about it."""

    info: dict[str, Any]


class LoadFailed(msgspec.Struct, tag=11, array_like=True, frozen=True):
    """The model cannot be loaded; the process exits after it."""

    error: ErrorWire


class Replies(msgspec.Struct, tag=12, array_like=True, frozen=True):
    """Responses of one execution. With `done` no other message about it follows; the times are of the model's code."""

    execution: int
    responses: list[ResponseWire]
    done: bool
    failure: ErrorWire | None = None
    began_ns: int = 0
    ended_ns: int = 0
    freed: list[int] = []


class Call(msgspec.Struct, tag=13, array_like=True, frozen=True):
    """The model calls another servable."""

    call: int
    request: RequestWire
    freed: list[int] = []


class CallCancel(msgspec.Struct, tag=14, array_like=True, frozen=True):
    """The model does not wait for its call any more."""

    call: int


class Ask(msgspec.Struct, tag=15, array_like=True, frozen=True):
    """The model asks something of the registry or the repository: "describe", "ready", "load" or "unload"."""

    call: int
    what: str
    arguments: dict[str, Any]


class Log(msgspec.Struct, tag=16, array_like=True, frozen=True):
    """A line for the gateway's log, at a level of `logging`."""

    level: int
    text: str


class MetricUpdate(msgspec.Struct, tag=17, array_like=True, frozen=True):
    """A metric of the model has a new value, or is gone when `value` is None."""

    family: str
    kind: str
    description: str
    labels: dict[str, str]
    value: float | None


ToWorker = Hello | Execute | Cancel | CallReply | Answer | Freed | Close
FromWorker = Ready | LoadFailed | Replies | Call | CallCancel | Ask | Log | MetricUpdate | Freed


class FrameReader:
    """Cuts a byte stream into frames, however the reads fell."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes | memoryview) -> Sequence[memoryview]:
        """Returns every frame that is complete now; views of `data` where it holds them whole.

        Raises:
            ConnectionError: The stream holds no frame; the connection cannot be used any more.
        """
        view = memoryview(data)
        if self._buffer:
            self._buffer += data
            if len(self._buffer) < _HEADER.size + self._length_at(self._buffer, 0):
                return []
            view = memoryview(self._buffer)
        elif len(view) > _HEADER.size and _HEADER.unpack_from(view)[0] == len(view) - _HEADER.size:
            return (view[_HEADER.size :],)  # one whole frame, as mostly
        frames = []
        at, end = 0, len(view)
        while at < end:
            start = at + _HEADER.size
            stop = start + self._length_at(view, at)
            if stop > end:
                break
            frames.append(view[start:stop])
            at = stop
        self._buffer = bytearray(view[at:])
        return frames

    def _length_at(self, view: memoryview | bytearray, at: int) -> int:
        """Returns the length of the frame there; where its header is cut off, of any."""
        if len(view) - at < _HEADER.size:
            return 0
        length: int = _HEADER.unpack_from(view, at)[0]
        if length > MAX_FRAME_BYTES:
            raise ConnectionError(f"a frame of {length} bytes was announced, the limit is {MAX_FRAME_BYTES}")
        return length


def encode(message: ToWorker | FromWorker, encoder: msgspec.msgpack.Encoder) -> bytearray:
    """Returns the message as one frame, header included.

    Raises:
        ValueError: It is larger than a frame may be.
    """
    frame = bytearray(_HEADER.size)
    encoder.encode_into(message, frame, _HEADER.size)
    length = len(frame) - _HEADER.size
    if length > MAX_FRAME_BYTES:
        raise ValueError(f"a message of {length} bytes is over the limit of {MAX_FRAME_BYTES}")
    _HEADER.pack_into(frame, 0, length)
    return frame

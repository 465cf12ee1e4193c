"""The frames of HTTP/2 (RFC 9113): their numbers, and how one is written."""

from __future__ import annotations

import struct
from collections.abc import Iterator

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
HEAD = struct.Struct(">BHBBI")  # 24 bits of length, kind, flags, stream
HEAD_BYTES = HEAD.size
_MESSAGE = struct.Struct(">BI")  # before a message: whether it is packed, its length

DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 0x1
END_HEADERS = 0x4
PADDED = 0x8
HAS_PRIORITY = 0x20

NO_ERROR, PROTOCOL_ERROR, INTERNAL_ERROR, FLOW_CONTROL_ERROR = 0, 1, 2, 3
STREAM_CLOSED, FRAME_SIZE_ERROR, REFUSED_STREAM, CANCEL, COMPRESSION_ERROR, ENHANCE_YOUR_CALM = 5, 6, 7, 8, 9, 11

HEADER_TABLE_SIZE, ENABLE_PUSH, MAX_CONCURRENT_STREAMS, INITIAL_WINDOW_SIZE, MAX_FRAME_SIZE = 1, 2, 3, 4, 5
MAX_HEADER_LIST_SIZE = 6

FIRST_WINDOW = 65535
STREAM_WINDOW = 4 << 20  # what we let a client send on a stream before it hears of us
LARGEST_WINDOW = (1 << 31) - 1
LEAST_FRAME_SIZE = 16384


class Broken(Exception):
    """A client does not speak HTTP/2.

    Args:
        code: What the end of the connection says.
        reason: Why, in words.
    """

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Returns a frame."""
    size = len(payload)
    return HEAD.pack(size >> 16, size & 0xFFFF, kind, flags, stream) + payload


def word(value: int) -> bytes:
    """Returns the four bytes of a number."""
    return value.to_bytes(4, "big")


def settings(values: dict[int, int]) -> bytes:
    """Returns a frame of settings."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", key, value) for key, value in values.items()))


def read_settings(payload: bytes) -> Iterator[tuple[int, int]]:
    """Yields names and values of settings.

    Raises:
        Broken: They make no sense.
    """
    if len(payload) % 6:
        raise Broken(FRAME_SIZE_ERROR, "settings have six bytes each")
    for name, value in struct.iter_unpack(">HI", payload):
        if name == INITIAL_WINDOW_SIZE and value > LARGEST_WINDOW:
            raise Broken(FLOW_CONTROL_ERROR, "the window is too large")
        if name == MAX_FRAME_SIZE and not LEAST_FRAME_SIZE <= value < 1 << 24:
            raise Broken(PROTOCOL_ERROR, "the size of frames makes no sense")
        yield name, value


def only_message(data: bytes, at: int, stream: int) -> tuple[int, int] | None:
    """Returns where a message begins and ends that is all of a stream's data, in one frame; None when it is not so."""
    first = at + HEAD_BYTES + _MESSAGE.size
    if first > len(data):
        return None
    high, low, kind, flags, own = HEAD.unpack_from(data, at)
    is_packed, size = _MESSAGE.unpack_from(data, at + HEAD_BYTES)
    if kind != DATA or flags != END_STREAM or own != stream or is_packed or high << 16 | low != size + _MESSAGE.size:
        return None
    return (first, first + size) if first + size <= len(data) else None


def unpadded(payload: bytes, flags: int) -> bytes:
    """Returns a payload without its padding.

    Raises:
        Broken: There is more padding than payload.
    """
    if not flags & PADDED:
        return payload
    if not payload or payload[0] >= len(payload):
        raise Broken(PROTOCOL_ERROR, "more padding than frame")
    return payload[1 : len(payload) - payload[0]]


def without_priority(payload: bytes, flags: int) -> bytes:
    """Returns the headers of a payload.

    Raises:
        Broken: The priority before them is cut off.
    """
    if not flags & HAS_PRIORITY:
        return payload
    if len(payload) < 5:
        raise Broken(FRAME_SIZE_ERROR, "a priority has five bytes")
    return payload[5:]


def number(payload: bytes) -> int:
    """Returns a payload that is a number.

    Raises:
        Broken: It is none.
    """
    if len(payload) != 4:
        raise Broken(FRAME_SIZE_ERROR, "a number has four bytes")
    return int.from_bytes(payload, "big")

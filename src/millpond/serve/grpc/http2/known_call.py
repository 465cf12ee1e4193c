"""`KnownCall`: a call whose bytes before its message are those of one that was read, but for the stream's number.

A client makes the same call again and again, each in one piece: a frame of headers and one of data. When everything up
to the message is the same and the size is too, the frames need not be taken apart again. `connection` learns and asks.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from millpond.serve.grpc.http2.frames import HEAD_BYTES

if TYPE_CHECKING:
    from millpond.serve.grpc.http2.heads import CallHead
    from millpond.serve.grpc.http2.server import Direct

_STREAM = HEAD_BYTES - 4  # where in a frame's head its stream's number is


class KnownCall:
    """One call's bytes.

    Args:
        data: All of it: a frame of headers, one of data.
        start: Where the second frame begins.
        first: Where the message begins.
        head: What the headers say.
        direct: Who answers.
    """

    __slots__ = ("_begin", "_middle", "_prefix", "block", "direct", "first", "head", "size")

    def __init__(self, data: bytes, start: int, first: int, head: CallHead, direct: Direct) -> None:
        self.size = len(data)
        self.first = first
        self.head = head
        self.direct = direct
        self.block = data[HEAD_BYTES:start]
        self._begin = data[:_STREAM]
        self._middle = data[HEAD_BYTES : start + _STREAM]
        self._prefix = data[start + HEAD_BYTES : first]

    def stream_of(self, data: bytes) -> int:
        """Returns the number of a call of the same size, 0 when it is another one."""
        stream = data[_STREAM:HEAD_BYTES]
        if data.startswith(b"".join((self._begin, stream, self._middle, stream, self._prefix))):
            return int.from_bytes(stream, "big")
        return 0

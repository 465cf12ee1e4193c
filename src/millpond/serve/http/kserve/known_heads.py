"""Heads of requests that a port has parsed before: clients send the same bytes again and again.

A head is remembered only after the parser has read exactly those bytes as the head of one whole request whose body had
the announced length, so that equal bytes mean the same. Framings that need more than a length are never remembered.
Owned by a port, asked by its connections.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from millpond.serve.http.kserve.exchange import Exchange

_MAX_HEADS = 512
_MAX_HEAD_BYTES = 2048
_END = b"\r\n\r\n"
_UNUSUAL = (b"transfer-encoding", b"expect", b"upgrade", b"content-encoding")


@dataclass(slots=True)
class Head:
    """What the parser made of a head.

    Attributes:
        raw: Its bytes, with the empty line.
        size: How many.
        body_bytes: What its `Content-Length` says.
        place: Gives the place where bodies are wanted, or None for anywhere; set by who reads them.
        route: Answers its requests, once a router has found that these bytes may be and by whom; see `router`.
        json_bytes: How much of a body is JSON, where tensors follow it; -1 until somebody asked.
    """

    raw: bytes
    size: int
    body_bytes: int
    method: str
    path: str
    headers: dict[bytes, bytes]
    route: Callable[[Exchange], None] | None = None
    place: Callable[[int], memoryview | None] | None = None
    json_bytes: int = -1


class KnownHeads:
    """The heads of one port."""

    def __init__(self) -> None:
        self._heads: dict[bytes, Head] = {}

    def find(self, data: bytearray, size: int) -> Head | None:
        """Returns the head with which the first `size` bytes begin; None when it is not known."""
        end = data.find(_END, 0, min(size, _MAX_HEAD_BYTES))
        return self._heads.get(bytes(data[: end + 4])) if end > 0 else None

    def learn(self, data: memoryview, body_bytes: int, *, method: str, path: str, headers: dict[bytes, bytes]) -> None:
        """Remembers the head of a request of which `data` is the head and the first `body_bytes` of the body."""
        size = len(data) - body_bytes
        if not 4 < size <= _MAX_HEAD_BYTES:
            return
        raw = bytes(data[:size])
        if raw.find(_END) != size - 4 or any(name in headers for name in _UNUSUAL):
            return
        if len(self._heads) >= _MAX_HEADS:
            self._heads.clear()
        self._heads[raw] = Head(raw, size, int(headers.get(b"content-length", b"0")), method, path, headers)

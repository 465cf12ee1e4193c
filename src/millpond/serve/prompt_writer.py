"""`PromptWriter`: bytes to a socket now, not at the end of the event loop's turn.

A transport of uvloop keeps what is written until the turn is over, so an answer waits for the bookkeeping behind it.
Where nothing is kept before them, bytes go to the socket here, and what it does not take goes to the transport. For
connections in the clear; knows no protocol.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

_MOST_PARTS = 512  # of one system call; systems take 1024
Part = bytes | bytearray | memoryview


class PromptWriter:
    """Writes to one transport.

    Args:
        transport: Of a socket or pipe in the clear; one that does not say which is written to in its own time.
    """

    __slots__ = ("_buffered", "_descriptor", "_is_closing", "_transport")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._is_closing = transport.is_closing
        self._buffered = transport.get_write_buffer_size
        sock = None if transport.get_extra_info("sslcontext") is not None else transport.get_extra_info("socket")
        self._descriptor: int = -1 if sock is None else sock.fileno()

    def write_one(self, data: Part) -> None:
        """Writes bytes that are not in parts."""
        if self._descriptor < 0 or self._is_closing() or self._buffered():
            self.write((data,))
            return
        try:
            sent = os.write(self._descriptor, data)
        except OSError:  # it is full, or broken, which the transport finds out and tells
            sent = 0
        if sent < len(data):
            self._transport.write(memoryview(data)[sent:])

    def write(self, parts: Sequence[Part]) -> None:
        """Writes bytes after all that was written before; nothing when the transport closes."""
        if self._is_closing():
            return
        if self._descriptor < 0 or self._buffered() or len(parts) > _MOST_PARTS:
            self._transport.writelines(parts)
            return
        try:
            sent = os.writev(self._descriptor, parts)
        except OSError:  # it is full, or broken, which the transport finds out and tells
            sent = 0
        if sent == sum(map(len, parts)):
            return
        for at, part in enumerate(parts):
            size = len(part)
            if sent < size:
                rest = memoryview(part)[sent:] if sent else part
                self._transport.writelines([rest, *parts[at + 1 :]])
                return
            sent -= size

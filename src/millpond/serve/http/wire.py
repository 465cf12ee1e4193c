"""Which HTTP/1.1 parser reads the sockets, and how much of a request's head it may keep.

uvicorn's parser in Python (h11) has a limit of its own; its faster one (httptools, from the `serve` extra) has none,
so a client could fill the memory with headers that never end. This adds the limit. Called by `launch.py`.
"""

from __future__ import annotations

import asyncio
from typing import Literal

MAX_HEAD_BYTES = 64 << 10


def http_protocol() -> type[asyncio.Protocol] | Literal["h11"]:
    """Returns what uvicorn shall parse with: httptools within limits, or h11 where that is not installed."""
    try:
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        return "h11"

    class BoundedProtocol(HttpToolsProtocol):
        """httptools that gives up on a request whose head is too long."""

        _is_in_head = False
        _head_bytes = 0

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._is_in_head:
                self._head_bytes += len(data)
                if self._head_bytes > MAX_HEAD_BYTES and not self.transport.is_closing():
                    self.send_400_response("The head of the request is too long.")

        def on_message_begin(self) -> None:
            super().on_message_begin()
            self._is_in_head = True
            self._head_bytes = 0

        def on_headers_complete(self) -> None:
            self._is_in_head = False
            size = len(self.url) + sum(len(name) + len(value) for name, value in self.headers)
            if size > MAX_HEAD_BYTES:
                raise ValueError("the head of the request is too long")  # the parser makes a 400 of it
            super().on_headers_complete()

    return BoundedProtocol

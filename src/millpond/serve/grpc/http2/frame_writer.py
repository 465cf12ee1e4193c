"""`FrameWriter`: the half of a connection of HTTP/2 that sends frames.

What is sent in one turn of the loop goes out together. Knows no streams and no windows; `connection` is one.
"""

from __future__ import annotations

import asyncio
from typing import cast

from millpond.serve.grpc.http2 import frames
from millpond.serve.grpc.http2.frames import frame, word
from millpond.serve.prompt_writer import PromptWriter


class FrameWriter:
    """Sends frames to one client."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._writer: PromptWriter = cast(PromptWriter, None)
        self._unsent: list[bytes | memoryview] = []

    def write_to(self, transport: asyncio.Transport) -> None:
        """Says where frames go; before the first of them."""
        self._writer = PromptWriter(transport)

    def write(self, data: bytes) -> None:
        """Sends whole frames; what is sent in one turn of the loop goes out at once."""
        self._unsent.append(data)
        if len(self._unsent) == 1:
            self.loop.call_soon(self.flush)

    def write_all(self, parts: list[bytes | memoryview]) -> None:
        """Sends whole frames that are in parts."""
        before, self._unsent = self._unsent, []
        self._writer.write([*before, *parts] if before else parts)

    def flush(self) -> None:
        """Sends what waits for the end of the turn."""
        parts, self._unsent = self._unsent, []
        if parts:
            self._writer.write(parts)

    def reset(self, stream: int, code: int) -> None:
        """Ends a stream of which nothing more is wanted."""
        self.write(frame(frames.RST_STREAM, 0, stream, word(code)))

    def open_window(self, stream: int, size: int) -> None:
        """Lets the client send so many bytes more on a stream."""
        self.write(frame(frames.WINDOW_UPDATE, 0, stream, word(size)))

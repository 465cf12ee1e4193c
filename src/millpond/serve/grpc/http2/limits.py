"""What a client of HTTP/2 may cost, and how it is told.

Sizes of frames and windows, how many streams, how long it may be silent; `idle_frames` counts what asks for nothing.
`connection` keeps them.
"""

from __future__ import annotations

from millpond.serve.grpc.http2 import frames
from millpond.serve.grpc.http2.frames import frame, word

MAX_FRAME, MAX_CONTROL_FRAME = 1 << 20, 64 << 10
CONNECTION_WINDOW = 64 << 20
MAX_STREAMS = 1000
HIGH_WATER = 1 << 20
LARGE = 4096  # bytes that are not copied before their message is whole
BEGIN_S, STALL_S = 15.0, 60.0
HELLO = frames.settings(
    {
        frames.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
        frames.INITIAL_WINDOW_SIZE: frames.STREAM_WINDOW,
        frames.MAX_FRAME_SIZE: MAX_FRAME,
        frames.MAX_HEADER_LIST_SIZE: 64 << 10,
    }
) + frame(frames.WINDOW_UPDATE, 0, 0, word(CONNECTION_WINDOW - frames.FIRST_WINDOW))

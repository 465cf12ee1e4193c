"""The server of gRPC on our own HTTP/2, given bytes by hand: sockets that misbehave, and rules of the protocol."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import AsyncIterator
from typing import cast

import pytest

from millpond.serve.grpc.http2 import frames, limits
from tests.support.http2_service import Served, serving


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as running:
        yield running


HEADERS = b"\x83\x86\x44\x07/s/echo\x5f\x10application/grpc"


def call_frames(stream: int, message: bytes = b"hi", block: bytes = HEADERS) -> bytes:
    body = b"\0" + struct.pack(">I", len(message)) + message
    return frames.frame(frames.HEADERS, 4, stream, block) + frames.frame(frames.DATA, 1, stream, body)


class Peer:
    """A client by hand."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def frames(self, seconds: float = 5.0) -> list[tuple[int, int, int, bytes]]:
        """All frames until the server is silent for a moment or closes."""
        found = []
        with contextlib.suppress(TimeoutError, asyncio.IncompleteReadError, ConnectionResetError):
            async with asyncio.timeout(seconds):
                while True:
                    head = await self.reader.readexactly(9)
                    high, low, kind, flags, stream = frames.HEAD.unpack(head)
                    found.append((kind, flags, stream, await self.reader.readexactly(high << 16 | low)))
        return found


@contextlib.asynccontextmanager
async def by_hand(served: Served, hello: bytes = frames.PREFACE + frames.settings({})) -> AsyncIterator[Peer]:
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port)
    writer.write(hello)
    try:
        yield Peer(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def test_bytes_may_come_one_by_one(served: Served) -> None:
    async with by_hand(served, b"") as peer:
        padded = frames.frame(frames.HEADERS, 0x28, 1, b"\x03\0\0\0\0\0" + HEADERS[:9] + b"pad")
        rest = frames.frame(frames.CONTINUATION, 4, 1, HEADERS[9:])
        body = frames.frame(frames.DATA, 8, 1, b"\x02\0\0\0\0\x02h\0\0") + frames.frame(frames.DATA, 1, 1, b"i")
        for byte in frames.PREFACE + frames.settings({}) + padded + rest + body:
            peer.send(bytes([byte]))
            await asyncio.sleep(0)
        found = await peer.frames(0.5)
        assert [payload for kind, _, _, payload in found if kind == frames.DATA] == [b"\0\0\0\0\x02hi"]


async def test_an_unknown_method_is_refused_without_a_reset_when_its_request_is_whole(served: Served) -> None:
    block = HEADERS.replace(b"/s/echo", b"/s/nope")
    assert block != HEADERS
    async with by_hand(served) as peer:
        peer.send(call_frames(1, b"x" * 9000, block) + frames.frame(frames.HEADERS, 4, 3, block))
        found = await peer.frames(0.5)
    of_whole = [(kind, flags) for kind, flags, stream, _ in found if stream == 1]
    assert of_whole == [(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM)]
    of_begun = [kind for kind, _, stream, _ in found if stream == 3]
    assert of_begun == [frames.HEADERS, frames.RST_STREAM]


async def test_windows_of_the_client_are_kept(served: Served) -> None:
    small = frames.PREFACE + frames.settings({frames.INITIAL_WINDOW_SIZE: 10})
    async with by_hand(served, small) as peer:
        peer.send(call_frames(1, b"0123456789abcdef"))
        data = [item[3] for item in await peer.frames(0.3) if item[0] == frames.DATA]
        assert b"".join(data) == b"\0\0\0\0\x1001234"
        peer.send(frames.frame(frames.WINDOW_UPDATE, 0, 1, frames.word(4)))
        data = [item[3] for item in await peer.frames(0.3) if item[0] == frames.DATA]
        assert b"".join(data) == b"5678"
        peer.send(frames.settings({frames.INITIAL_WINDOW_SIZE: 100}))
        last = await peer.frames(0.3)
        assert b"".join(item[3] for item in last if item[0] == frames.DATA) == b"9abcdef"
        assert any(kind == frames.HEADERS and flags & frames.END_STREAM for kind, flags, _, _ in last)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", frames.PROTOCOL_ERROR),
        (frames.PREFACE + frames.frame(frames.HEADERS, 4, 2, HEADERS), frames.PROTOCOL_ERROR),
        (frames.PREFACE + frames.frame(frames.DATA, 0, 1, b"x"), frames.PROTOCOL_ERROR),
        (frames.PREFACE + frames.frame(frames.HEADERS, 4, 1, b"\xff\xff\xff\xff\xff\xff"), frames.COMPRESSION_ERROR),
        (frames.PREFACE + b"\xff\xff\xff\x01\0\0\0\0\x01", frames.FRAME_SIZE_ERROR),
        (frames.PREFACE + frames.frame(frames.PING, 0, 0, b"short"), frames.FRAME_SIZE_ERROR),
        (frames.PREFACE + frames.frame(frames.HEADERS, 0, 1, HEADERS) + call_frames(3), frames.PROTOCOL_ERROR),
        (frames.PREFACE + frames.frame(frames.CONTINUATION, 4, 1, HEADERS), frames.PROTOCOL_ERROR),
        (frames.PREFACE + frames.frame(frames.WINDOW_UPDATE, 0, 0, frames.word((1 << 31) - 1)),
         frames.FLOW_CONTROL_ERROR),
        (frames.PREFACE + frames.settings({frames.INITIAL_WINDOW_SIZE: 1 << 31}), frames.FLOW_CONTROL_ERROR),
        (frames.PREFACE + frames.frame(frames.HEADERS, 0, 1, b"")
         + frames.frame(frames.CONTINUATION, 0, 1, bytes(60_000)) * 3, frames.ENHANCE_YOUR_CALM),
        (frames.PREFACE + frames.frame(frames.PING, 0, 0, bytes(8)) * 10_002, frames.ENHANCE_YOUR_CALM),
        (frames.PREFACE + b"".join(frames.frame(frames.HEADERS, 4, n, HEADERS)
         + frames.frame(frames.RST_STREAM, 0, n, frames.word(8)) for n in range(1, 20_010, 2)),
         frames.ENHANCE_YOUR_CALM),
    ],
)  # fmt: skip
async def test_a_client_that_breaks_the_rules_is_cut_off_alone(served: Served, data: bytes, code: int) -> None:
    async with by_hand(served, data) as peer:
        last = [payload for kind, _, _, payload in await peer.frames() if kind == frames.GOAWAY]
        assert [struct.unpack(">I", payload[4:8])[0] for payload in last] == [code]
        with contextlib.suppress(ConnectionResetError):  # what it did not read makes the end a hard one
            assert await peer.reader.read() == b""
    assert await served.ask("echo", b"x") == b"x"


async def test_what_is_no_call_has_a_status_of_http(served: Served) -> None:
    async with by_hand(served) as peer:
        peer.send(call_frames(1, block=b"\x82\x86\x84"))
        peer.send(call_frames(3, block=b"\x83\x86\x44\x07/s/echo\x5f\x09text/html"))
        found = {stream: payload for kind, _, stream, payload in await peer.frames(0.3) if kind == frames.HEADERS}
        assert found[1].endswith(b"405")
        assert found[3].endswith(b"415")


async def test_a_request_that_never_ends_is_given_up(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "STALL_S", 0.2)
    async with by_hand(served) as peer:
        peer.send(frames.frame(frames.HEADERS, 4, 1, HEADERS) + frames.frame(frames.DATA, 0, 1, b"\0\0\0\0\x09"))
        found = await peer.frames(2.5)
        assert (frames.RST_STREAM, 0, 1, frames.word(frames.CANCEL)) in found


async def test_more_streams_than_allowed_are_refused(served: Served) -> None:
    async with by_hand(served) as peer:
        slow = b"\x83\x86\x44\x07/s/slow\x5f\x10application/grpc"
        peer.send(b"".join(call_frames(number, block=slow) for number in range(1, 2005, 2)))
        refused = [stream for kind, _, stream, _ in await peer.frames(1.0) if kind == frames.RST_STREAM]
        assert refused == [2001, 2003]


CHAT = b"\x83\x86\x44\x07/s/chat\x5f\x10application/grpc"
DIRECT = b"\x83\x86\x44\x09/s/direct\x5f\x10application/grpc"


async def test_messages_may_stand_in_frames_as_they_like(served: Served) -> None:
    sizes = [0] * 20_000 + [1, 0, 300, 70_000, 0, 5]
    stream = b"".join(struct.pack(">BI", 0, size) + b"x" * size for size in sizes)
    total = b"\x83\x86\x44\x08/s/total\x5f\x10application/grpc"
    for step in (len(stream), 16_384, 4_097):
        async with by_hand(served) as peer:
            peer.send(frames.frame(frames.HEADERS, 4, 1, total))
            parts = [stream[at : at + step] for at in range(0, len(stream), step)]
            peer.send(b"".join(frames.frame(frames.DATA, 0, 1, part) for part in parts))
            peer.send(frames.frame(frames.DATA, 1, 1))
            data = [item[3] for item in await peer.frames(0.5) if item[0] == frames.DATA]
            assert data == [b"\0\0\0\0\x05" + b"%d" % sum(sizes)]


async def test_more_data_than_the_window_ends_the_connection(served: Served) -> None:
    slow = b"\x83\x86\x44\x07/s/slow\x5f\x10application/grpc"
    async with by_hand(served) as peer:
        peer.send(frames.frame(frames.HEADERS, 4, 1, slow))
        # Messages that nobody reads: what is not granted again may not be sent.
        part = struct.pack(">BI", 0, 1000) + bytes(1000)
        block = frames.frame(frames.DATA, 0, 1, part * 100)
        peer.send(block * (frames.STREAM_WINDOW // len(part * 100) + 2))
        last = [payload for kind, _, _, payload in await peer.frames() if kind == frames.GOAWAY]
        assert [struct.unpack(">I", payload[4:8])[0] for payload in last] == [frames.FLOW_CONTROL_ERROR]
    assert await served.ask("echo", b"x") == b"x"


async def test_padding_is_granted_again(served: Served) -> None:
    async with by_hand(served) as peer:
        peer.send(frames.frame(frames.HEADERS, 4, 1, HEADERS))
        body = struct.pack(">BI", 0, 7_000_000) + bytes(7_000_000)
        parts = [body[at : at + 2000] for at in range(0, len(body), 2000)]
        window, found = frames.STREAM_WINDOW, 0
        for number, part in enumerate(parts):
            payload = b"\xff" + part + bytes(255)
            while window < len(payload):
                head = frames.HEAD.unpack(await asyncio.wait_for(peer.reader.readexactly(9), 5))
                content = await peer.reader.readexactly(head[0] << 16 | head[1])
                if (head[2], head[4]) == (frames.WINDOW_UPDATE, 1):
                    window += int.from_bytes(content, "big")
                    found += 1
            window -= len(payload)
            peer.send(frames.frame(frames.DATA, 8 | (number == len(parts) - 1), 1, payload))
        assert found >= 3
        assert any(kind == frames.DATA for kind, _, _, _ in await peer.frames(1.0))


async def test_who_reads_no_answers_is_not_read_either(served: Served) -> None:
    wide = frames.settings({frames.INITIAL_WINDOW_SIZE: (1 << 31) - 1})
    more = frames.frame(frames.WINDOW_UPDATE, 0, 0, frames.word((1 << 31) - 1 - frames.FIRST_WINDOW))
    async with by_hand(served, frames.PREFACE + wide + more) as peer:
        transport = cast(asyncio.Transport, peer.writer.transport)  # a client's reads too
        transport.pause_reading()
        transport.set_write_buffer_limits(1 << 16)
        count = 0
        with contextlib.suppress(TimeoutError):
            while count < 1500:
                peer.send(call_frames(2 * count + 1, bytes(60_000), DIRECT))
                count += 1
                await asyncio.wait_for(peer.writer.drain(), 1.0)
        assert count < 1500  # the server stopped reading
        transport.resume_reading()
        seen = await peer.frames(2.0)
        assert sum(kind == frames.DATA and len(payload) > 1 for kind, _, _, payload in seen) >= count


async def test_pings_that_come_slowly_are_answered_for_ever(served: Served) -> None:
    async with by_hand(served) as peer:
        pings = frames.frame(frames.PING, 0, 0, bytes(8)) * 4000
        for _ in range(4):
            peer.send(pings)
            assert sum(kind == frames.PING for kind, _, _, _ in await peer.frames(0.4)) == 4000
            (connection,) = (one for one in served.server._connections if one._has_settings)
            for second in range(10):
                connection.check(asyncio.get_running_loop().time() + second)


async def test_a_message_cannot_be_sent_as_slowly_as_one_likes(served: Served) -> None:
    async with by_hand(served) as peer:
        peer.send(frames.frame(frames.HEADERS, 4, 1, HEADERS))
        peer.send(frames.frame(frames.DATA, 0, 1, b"\0\0\0\0\x09"))
        for _ in range(5):
            await asyncio.sleep(0.1)
            peer.send(frames.frame(frames.DATA, 0, 1, b"x"))
        await asyncio.sleep(0.1)
        (connection,) = (one for one in served.server._connections if one.calls)
        connection.check(asyncio.get_running_loop().time() + 59.6)  # the last byte came a moment ago
        assert (frames.RST_STREAM, 0, 1, frames.word(frames.CANCEL)) in await peer.frames(0.5)


async def test_the_same_bytes_again_are_the_same_call_until_the_table_of_headers_changes(served: Served) -> None:
    """What a client sends before its message is compared with what it sent last; that may hide nothing."""
    known = b"\x83\x86\xbf\xbe"  # the path and the type that were named last
    calls = [
        (b"\x83\x86\x44\x09/s/direct\x5f\x10application/grpc", b"abc", b"cba"),
        (known, b"abc", b"cba"),
        (known, b"def", b"fed"),
        (known, b"longer", b"regnol"),
        (b"\x83\x86\x44\x07/s/echo\x5f\x10application/grpc", b"abc", b"abc"),
        (known, b"abc", b"abc"),
    ]
    async with by_hand(served) as peer:
        await peer.frames(0.1)
        for number, (block, message, answer) in enumerate(calls):
            peer.send(call_frames(2 * number + 1, message, block))
            found = await peer.frames(0.2)
            assert [payload[5:] for kind, _, _, payload in found if kind == frames.DATA] == [answer]


@pytest.mark.parametrize("broken", ["packed", "another stream's data", "an old number"])
async def test_a_call_that_only_begins_like_the_last_one_is_read(served: Served, broken: str) -> None:
    block = b"\x83\x86\x04\x09/s/direct\x0f\x10\x10application/grpc"
    async with by_hand(served) as peer:
        await peer.frames(0.1)
        for stream in (1, 3):
            peer.send(call_frames(stream, b"abc", block))
            assert (frames.DATA, b"\0\0\0\0\3cba") in [(kind, data) for kind, _, _, data in await peer.frames(0.2)]
        whole = bytearray(call_frames(1 if broken == "an old number" else 5, b"abc", block))
        if broken == "packed":
            whole[-8] = 1
        elif broken == "another stream's data":
            whole[-9] = 7
        peer.send(bytes(whole))
        found = await peer.frames(0.3)
        assert frames.DATA not in [kind for kind, _, _, _ in found]

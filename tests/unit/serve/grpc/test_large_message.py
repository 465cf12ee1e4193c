"""Large messages that are read where they are wanted: whole however they come, and given back however they end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import struct
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest

from millpond.serve.grpc.http2 import frames
from millpond.serve.grpc.http2.calls import Message, ServerCall
from millpond.serve.grpc.http2.server import Http2Server

SIZE = 300_000
BODY = bytes(range(250)) * (SIZE // 250)
HEADERS = b"\x83\x86\x44\x06/s/big\x5f\x10application/grpc"
IN_A_MOMENT = b"\x40\x0cgrpc-timeout\x04200m"


class Lending:
    """A server whose large messages go to places of this test."""

    def __init__(self) -> None:
        self.places: list[weakref.ref[np.ndarray[Any, Any]]] = []
        self.seen: list[tuple[bytes, bool]] = []
        self.port = 0

    def place(self, length: int, first: bytes) -> memoryview:
        lent = np.zeros(length + 64, np.uint8)
        self.places.append(weakref.ref(lent))
        return lent[64:].data

    def answer(self, call: ServerCall, message: Message) -> None:
        self.seen.append((bytes(message), isinstance(message, memoryview)))
        call.answer(b"yes")

    async def given_back(self) -> None:
        async with asyncio.timeout(10):
            while any(place() is not None for place in self.places):
                await asyncio.sleep(0.01)


@pytest.fixture
async def lending() -> AsyncIterator[Lending]:
    made = Lending()
    server = Http2Server(1 << 20)
    server.add_direct("/s/big", made.answer, made.place)
    made.port = await server.start("127.0.0.1", 0)
    yield made
    await server.stop(0)


@pytest.fixture
def no_cycles_are_looked_for() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@contextlib.asynccontextmanager
async def client(lending: Lending) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", lending.port)
    writer.write(frames.PREFACE + frames.settings({}))
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def begun(stream: int, step: int, *, headers: bytes = HEADERS, size: int = SIZE) -> list[bytes]:
    """A call whose message comes in frames of `step` bytes, without the end."""
    message = struct.pack(">BI", 0, SIZE) + BODY[:size]
    parts = [message[at : at + step] for at in range(0, len(message), step)]
    return [frames.frame(frames.HEADERS, 4, stream, headers), *(frames.frame(frames.DATA, 0, stream, p) for p in parts)]


async def until_placed(lending: Lending, count: int = 1) -> None:
    async with asyncio.timeout(10):
        while len(lending.places) < count:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("step", [16_384, 70_001, SIZE + 5])
@pytest.mark.usefixtures("no_cycles_are_looked_for")
async def test_a_message_in_its_place_is_whole_however_it_comes(lending: Lending, step: int) -> None:
    async with client(lending) as (reader, writer):
        both = zip(begun(1, step), begun(3, step), strict=True)  # two calls, frame by frame in turns
        for pair in both:
            for piece in pair:
                for at in range(0, len(piece), 50_000):
                    writer.write(piece[at : at + 50_000])
                    await asyncio.sleep(0.001)
        writer.write(frames.frame(frames.DATA, 1, 1) + frames.frame(frames.DATA, 1, 3))
        async with asyncio.timeout(10):
            while len(lending.seen) < 2:
                await reader.read(1 << 16)
        assert lending.seen == [(BODY, True)] * 2
        assert len(lending.places) == 2
        await lending.given_back()


@pytest.mark.parametrize("how", ["goes", "resets", "is late"])
@pytest.mark.usefixtures("no_cycles_are_looked_for")
async def test_a_message_that_never_ends_gives_its_place_back(lending: Lending, how: str) -> None:
    async with client(lending) as (_, writer):
        headers = HEADERS + IN_A_MOMENT if how == "is late" else HEADERS
        data = b"".join(begun(1, 100_000, headers=headers, size=200_000))
        writer.write(data[:-1000] if how == "goes" else data)  # a frame that is cut off keeps its place most readily
        await until_placed(lending)
        await asyncio.sleep(0.05)
        if how == "goes":
            writer.close()
        elif how == "resets":
            writer.write(frames.frame(frames.RST_STREAM, 0, 1, frames.word(frames.CANCEL)))
        await lending.given_back()
        assert lending.seen == []


async def test_what_comes_after_the_deadline_goes_nowhere(lending: Lending) -> None:
    async with client(lending) as (_, writer):
        late, other = begun(1, SIZE + 5, headers=HEADERS + IN_A_MOMENT), begun(3, SIZE + 5)
        frame_of_all = b"".join(late)
        writer.write(frame_of_all[:-100_000])
        await until_placed(lending)
        await asyncio.sleep(0.4)
        writer.write(frame_of_all[-100_000:] + b"".join(other) + frames.frame(frames.DATA, 1, 3))
        async with asyncio.timeout(10):
            while not lending.seen:
                await asyncio.sleep(0.01)
        assert lending.seen == [(BODY, True)]
        assert len(lending.places) == 2

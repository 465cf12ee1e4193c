"""Requests of one connection, however their bytes fall into reads and whether or not the port has seen the like.

What each request means is written out beside it, so a way around the parser has to find the same.
"""

from __future__ import annotations

import asyncio
import gc
import json
import random
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import pytest

from millpond.serve.http.kserve.connection import HttpConnection
from millpond.serve.http.kserve.exchange import JSON, Exchange
from millpond.serve.http.kserve.limits import HttpLimits
from millpond.serve.http.kserve.port import HttpPort

MAX_BODY = 1 << 20
Meaning = tuple[str, str, str]


def post(path: str, body: bytes, *lines: str) -> bytes:
    head = [f"POST {path} HTTP/1.1", "Host: localhost", *lines, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(head).encode() + body


def chunked(path: str, *chunks: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    return head + b"".join(b"%x\r\n%s\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"


KINDS: tuple[tuple[bytes, Meaning], ...] = (
    (post("/a", b"first"), ("POST", "/a", "first")),
    (post("/a", b"other"), ("POST", "/a", "other")),
    (post("/a?x=1", b"other"), ("POST", "/a", "other")),
    (post("/b", b"", "X-More: yes"), ("POST", "/b", "")),
    (post("/a", b"\r\n\r\n"), ("POST", "/a", "\r\n\r\n")),
    (post("/a", b"GET / HTTP/1.1\r\n\r\n"), ("POST", "/a", "GET / HTTP/1.1\r\n\r\n")),
    (chunked("/c", b"one", b"two"), ("POST", "/c", "onetwo")),
    (b"GET /d HTTP/1.1\r\nHost: localhost\r\n\r\n", ("GET", "/d", "")),
    (b"\r\nPOST /e HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi", ("POST", "/e", "hi")),
)


def echo(exchange: Exchange) -> None:
    request = exchange.request
    exchange.respond(200, [json.dumps([request.method, request.path, bytes(request.body).decode()]).encode()], JSON)


@asynccontextmanager
async def served(handle: Callable[[Exchange], None] = echo) -> AsyncIterator[tuple[HttpPort, HttpLimits]]:
    limits = HttpLimits(handle, str.encode, MAX_BODY)
    port = HttpPort("test", "127.0.0.1", 0, limits=limits, param="port")
    await port.start()
    try:
        yield port, limits
    finally:
        await port.stop()


async def read_response(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode()
    length = next(int(line.split(":")[1]) for line in head.split("\r\n") if line.lower().startswith("content-length"))
    return int(head.split()[1]), await reader.readexactly(length)


async def answers(port: HttpPort, pieces: Sequence[bytes], count: int) -> list[Meaning]:
    """Sends pieces so that each is a read of its own, and returns what the requests were taken for."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port.port)
    try:
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
            for _ in range(3):
                await asyncio.sleep(0)
        found = []
        for _ in range(count):
            status, body = await asyncio.wait_for(read_response(reader), 10)
            assert status == 200
            found.append(tuple(json.loads(body)))
        return found
    finally:
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("is_known", [False, True])
@pytest.mark.parametrize("kind", range(len(KINDS)))
async def test_a_request_cut_anywhere_means_the_same(kind: int, is_known: bool) -> None:
    data, meaning = KINDS[kind]
    async with served() as (port, _):
        if is_known:
            assert await answers(port, [data], 1) == [meaning]
        for at in range(1, len(data), 7):
            assert await answers(port, [data[:at], data[at:]], 1) == [meaning]


@pytest.mark.parametrize("seed", range(12))
async def test_any_requests_in_any_pieces_mean_the_same(seed: int) -> None:
    chance = random.Random(seed)
    async with served() as (port, _):
        for _ in range(6):
            chosen = [chance.choice(KINDS) for _ in range(chance.randint(1, 12))]
            data = b"".join(request for request, _ in chosen)
            cuts = sorted(chance.sample(range(1, len(data)), min(len(data) - 1, chance.randint(0, 9))))
            pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
            assert await answers(port, pieces, len(chosen)) == [meaning for _, meaning in chosen]


async def test_large_bodies_arrive_whole_beside_each_other() -> None:
    sizes = (300_000, 300_000, 700_001, MAX_BODY)
    bodies = [bytes([65 + index]) * size for index, size in enumerate(sizes)]
    async with served() as (port, _):
        for _ in range(2):  # the second time with known heads
            found = await asyncio.gather(*(answers(port, [post("/big", body) * 2], 2) for body in bodies))
            assert [one[0][2].encode() for one in found] == bodies
            assert [one[1][2].encode() for one in found] == bodies


async def test_a_known_head_does_not_lift_the_limit_of_bodies() -> None:
    async with served() as (port, _):
        for _ in range(2):
            reader, writer = await asyncio.open_connection("127.0.0.1", port.port)
            writer.write(post("/big", b"x" * (MAX_BODY + 1)))
            status, _ = await asyncio.wait_for(read_response(reader), 10)
            assert status == 413
            writer.close()


async def test_expect_and_close_are_seen_every_time() -> None:
    expecting = post("/a", b"body", "Expect: 100-continue")
    closing = post("/a", b"body", "Connection: close")
    async with served() as (port, _):
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", port.port)
            writer.write(expecting[:-4])
            assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10) == b"HTTP/1.1 100 Continue\r\n\r\n"
            writer.write(expecting[-4:])
            assert (await asyncio.wait_for(read_response(reader), 10))[0] == 200
            writer.write(closing)
            assert b"Connection: close" in await asyncio.wait_for(reader.read(), 10)
            writer.close()


async def test_a_client_that_stops_within_a_known_body_is_told_and_cut_off() -> None:
    request = post("/a", b"0123456789" * 10)
    async with served() as (port, limits):
        assert await answers(port, [request], 1)
        connections: set[HttpConnection] = port._connections
        reader, writer = await asyncio.open_connection("127.0.0.1", port.port)
        writer.write(request[:-3])
        await asyncio.sleep(0.05)
        (connection,) = connections
        now = asyncio.get_running_loop().time()
        connection.check(now + 29)
        assert limits.num_busy == 0
        connection.check(now + 40)
        status, body = await asyncio.wait_for(read_response(reader), 10)
        assert (status, body) == (408, b"Request Timeout")
        assert await asyncio.wait_for(reader.read(), 10) == b""
        writer.close()


async def test_a_client_that_goes_within_a_known_body_asks_for_nothing() -> None:
    seen: list[Exchange] = []

    def note(exchange: Exchange) -> None:
        seen.append(exchange)
        echo(exchange)

    request = post("/a", b"0123456789" * 10)
    async with served(note) as (port, limits):
        assert await answers(port, [request], 1)
        _, writer = await asyncio.open_connection("127.0.0.1", port.port)
        writer.write(request[:-3])
        await asyncio.sleep(0.05)
        writer.close()
        await asyncio.sleep(0.05)
        assert len(seen) == 1
        assert not port._connections
        assert limits.num_busy == 0


async def test_a_client_that_goes_within_a_body_gives_its_place_back() -> None:
    places: list[weakref.ref[np.ndarray[Any, Any]]] = []

    def place(num_bytes: int) -> memoryview:
        lent = np.empty(num_bytes, np.uint8)
        places.append(weakref.ref(lent))
        return lent.data

    request = post("/a", b"0123456789" * 10)
    async with served() as (port, limits):
        assert await answers(port, [request], 1)
        (head,) = limits.heads._heads.values()
        head.place = place
        gc.collect()
        gc.disable()
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port.port)
            writer.write(request[:-3])
            async with asyncio.timeout(10):
                while not places:
                    await asyncio.sleep(0.01)
                assert places[0]() is not None
                writer.close()
                while places[0]() is not None:
                    await asyncio.sleep(0.01)
        finally:
            gc.enable()

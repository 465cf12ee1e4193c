"""The server of gRPC on our own HTTP/2, asked by gRPC's own client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest

from tests.support.http2_service import MAX_BYTES, Served, serving


@pytest.fixture
async def served() -> AsyncIterator[Served]:
    async with serving() as running:
        yield running


@pytest.mark.parametrize("size", [0, 1, 16_000, 16_384, 70_000, 5_000_000])
@pytest.mark.parametrize("method", ["echo", "direct"])
async def test_a_message_of_any_size_is_answered(served: Served, method: str, size: int) -> None:
    message = bytes(range(256)) * (size // 256) + bytes(size % 256)
    expected = message if method == "echo" else message[::-1]
    assert await served.ask(method, message) == expected


async def test_many_calls_share_a_connection(served: Served) -> None:
    messages = [b"%d" % number * (number % 50) for number in range(600)]
    answers = await asyncio.gather(*(served.ask("echo" if len(m) % 2 else "direct", m) for m in messages))
    assert answers == [m if len(m) % 2 else m[::-1] for m in messages]


async def test_metadata_arrives(served: Served) -> None:
    answer = await served.ask("metadata", metadata=(("one", "1"), ("two", "2" * 300), ("two", "x")))
    assert answer == repr([("one", "1"), ("two", "2" * 300), ("two", "x")]).encode()


@pytest.mark.parametrize(
    ("method", "code", "words"),
    [
        ("abort", grpc.StatusCode.NOT_FOUND, "nicht da: ü%\n"),
        ("broken", grpc.StatusCode.UNKNOWN, "a bug"),
        ("nothing", grpc.StatusCode.UNIMPLEMENTED, "Method not found!"),
    ],
)
async def test_an_error_has_its_status_and_words(
    served: Served, method: str, code: grpc.StatusCode, words: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.ask(method)
    assert caught.value.code() is code
    assert words in (caught.value.details() or "")


async def test_a_message_that_is_too_large_is_refused_and_the_connection_goes_on(served: Served) -> None:
    for _ in range(3):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await served.ask("echo", bytes(MAX_BYTES + 1))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert await served.ask("echo", b"x") == b"x"


async def test_streams_go_both_ways(served: Served) -> None:
    assert [m async for m in served.channel.unary_stream("/s/count")(b"500")] == [b"%d" % n for n in range(500)]
    parts = [bytes([number % 256]) * 40_000 for number in range(300)]
    assert await served.channel.stream_unary("/s/total")(iter(parts)) == b"12000000"
    answers = [m async for m in served.channel.stream_stream("/s/chat")(iter(parts))]
    assert answers == [part * 2 for part in parts]


@pytest.mark.parametrize("compression", [grpc.Compression.Gzip, grpc.Compression.Deflate])
async def test_compressed_messages_are_read(served: Served, compression: grpc.Compression) -> None:
    assert await served.ask("echo", b"a" * 100_000, compression=compression) == b"a" * 100_000


async def test_a_deadline_ends_a_call_and_its_work(served: Served) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await served.ask("slow", timeout=0.2)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await _until(lambda: served.service.num_cancelled == 1)


async def test_a_client_that_cancels_ends_the_work(served: Served) -> None:
    call = served.channel.unary_unary("/s/slow")(b"")
    await asyncio.sleep(0.1)
    call.cancel()
    await _until(lambda: served.service.num_cancelled == 1)
    assert await served.ask("echo", b"x") == b"x"


async def test_a_drain_finishes_what_was_accepted(served: Served) -> None:
    call = served.channel.unary_unary("/s/slow")(b"late")
    await asyncio.sleep(0.1)
    stopping = asyncio.create_task(served.server.stop(10))
    await asyncio.sleep(0.1)
    served.service.release.set()
    assert await call == b"late"
    await asyncio.wait_for(stopping, 5)


async def _until(is_so: Any) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.01)

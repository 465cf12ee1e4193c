"""What is written promptly arrives once and in order, however much of it the socket takes at a time."""

from __future__ import annotations

import asyncio
import random
import socket
from collections.abc import Callable

import pytest
import uvloop

from millpond.serve.prompt_writer import PromptWriter


async def sent_and_received(rng: random.Random) -> tuple[bytes, bytes]:
    """Writes parts of all sizes, some past the writer, to a peer that reads now and then."""
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    transport, _ = await loop.create_unix_connection(asyncio.Protocol, sock=ours)
    writer = PromptWriter(transport)
    sent, received = bytearray(), bytearray()
    for _ in range(200):
        parts = [rng.randbytes(rng.choice((0, 1, 100, 5000, 40_000))) for _ in range(rng.choice((1, 2, 5, 600)))][:600]
        parts = parts if len(parts) < 600 else [part[:3] for part in parts]
        sent += b"".join(parts)
        if rng.random() < 0.2:
            transport.writelines(parts)
        elif rng.random() < 0.3:
            writer.write_one(b"".join(parts))
        else:
            writer.write([memoryview(part) if rng.random() < 0.3 else part for part in parts])
        if rng.random() < 0.5:
            received += await loop.sock_recv(theirs, 30_000) if len(received) < len(sent) else b""
    transport.close()
    while data := await loop.sock_recv(theirs, 1 << 20):
        received += data
    theirs.close()
    return bytes(sent), bytes(received)


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_bytes_arrive_once_and_in_order(make_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    with asyncio.Runner(loop_factory=make_loop) as runner:
        for seed in range(4):
            sent, received = runner.run(sent_and_received(random.Random(seed)))
            assert received == sent


@pytest.mark.parametrize("make_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_closed_or_broken_connection_is_the_transports_matter(
    make_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    class Lost(asyncio.Protocol):
        def __init__(self) -> None:
            self.over = asyncio.get_running_loop().create_future()

        def connection_lost(self, exc: Exception | None) -> None:
            self.over.set_result(exc)

    async def write_to_nobody() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        made, protocol = await asyncio.get_running_loop().create_unix_connection(Lost, sock=ours)
        writer = PromptWriter(made)
        theirs.close()
        writer.write([b"lost"])
        await asyncio.wait_for(protocol.over, 30)
        writer.write([b"lost too"])

    with asyncio.Runner(loop_factory=make_loop) as runner:
        runner.run(write_to_nobody())

"""Connections of every port send small answers at once, on the standard event loop and on uvloop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest
import uvloop

from millpond.serve.grpc.http2.server import Http2Server
from millpond.serve.http.kserve.limits import HttpLimits
from millpond.serve.http.kserve.port import HttpPort
from millpond.serve.listeners import listen

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


def is_immediate(connection: Any) -> bool:
    return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_connections_of_a_listener_are_immediate(host: str) -> None:
    with listen(host, 0) as listener, socket.create_connection(listener.getsockname()[:2]):
        accepted, _ = listener.accept()
        with accepted:
            assert is_immediate(accepted)


@pytest.mark.parametrize("make_loop", LOOPS)
def test_connections_of_the_triton_ports_are_immediate(make_loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    async def check() -> list[bool]:
        http = HttpPort(
            "http", "127.0.0.1", 0, limits=HttpLimits(lambda _: None, str.encode, 1 << 20), param="triton.http_port"
        )
        await http.start()
        server = Http2Server(1 << 20)
        grpc_port = await server.start("127.0.0.1", 0)
        found = []
        for port, connections in ((http.port, http._connections), (grpc_port, server._connections)):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            async with asyncio.timeout(10):
                while not connections:
                    await asyncio.sleep(0.01)
            (connection,) = connections
            found.append(is_immediate(connection._transport.get_extra_info("socket")))
            writer.close()
        await http.stop()
        await server.stop(0)
        return found

    with asyncio.Runner(loop_factory=make_loop) as runner:
        assert runner.run(check()) == [True, True]

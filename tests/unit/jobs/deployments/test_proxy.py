"""The proxy between a real client and real upstream servers on sockets of this machine."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import http.client
import json
import os
import resource
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from millpond.api.deployment import GatewaySpec
from millpond.jobs.deployments.balance import Backend, Balancer
from millpond.jobs.deployments.proxy import Proxy

Handler = Callable[[web.BaseRequest], Awaitable[web.StreamResponse]]


class ProxyRoom:
    """A proxy before upstream servers."""

    def __init__(self, limits: GatewaySpec) -> None:
        self.unreachable: list[str] = []
        self.balancer = Balancer(limits, weights={"v1": 1})
        self.proxy = Proxy(self.balancer, lambda backend: self.unreachable.append(backend.uid))
        self.port = 0

    def add(self, port: int, uid: str) -> None:
        self.balancer.add(Backend(uid, "v1", "127.0.0.1", port, uid, is_open=True))

    async def ask(
        self, method: str = "GET", path: str = "/", body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[http.client.HTTPResponse, bytes]:
        """Asks with a client that is not aiohttp's."""

        def send() -> tuple[http.client.HTTPResponse, bytes]:
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
            try:
                connection.request(method, path, body, headers or {})
                answer = connection.getresponse()
                return answer, answer.read()
            finally:
                connection.close()

        return await asyncio.to_thread(send)


@asynccontextmanager
async def listening(handler: Handler, **options: object) -> AsyncIterator[int]:
    server = web.Server(handler, access_log=None, **options)  # type: ignore[arg-type]
    listener = await asyncio.get_running_loop().create_server(server, "127.0.0.1", 0)
    try:
        yield listener.sockets[0].getsockname()[1]
    finally:
        listener.close()
        await server.shutdown(0.1)


@asynccontextmanager
async def proxy_to(*handlers: Handler, **limits: float) -> AsyncIterator[ProxyRoom]:
    room = ProxyRoom(GatewaySpec(**{"queue_timeout_s": 60.0} | limits))  # type: ignore[arg-type]
    await room.proxy.start()
    try:
        async with listening(room.proxy.handle, handler_cancellation=True) as port:
            room.port = port
            async with _all_listening(handlers) as ports:
                for number, upstream in enumerate(ports):
                    room.add(upstream, f"b{number}")
                yield room
    finally:
        await room.proxy.close()
    assert all(backend.in_flight == 0 for backend in room.balancer.backends.values())


@asynccontextmanager
async def _all_listening(handlers: tuple[Handler, ...]) -> AsyncIterator[list[int]]:
    if not handlers:
        yield []
        return
    async with listening(handlers[0]) as port, _all_listening(handlers[1:]) as others:
        yield [port, *others]


async def read_all(request: web.BaseRequest) -> bytes:
    """The whole body, however large."""
    return b"".join([piece async for piece in request.content.iter_any()])


async def echo(request: web.BaseRequest) -> web.StreamResponse:
    body = await read_all(request)
    said = {"method": request.method, "path": request.raw_path, "headers": list(request.headers.items()),
            "sha": hashlib.sha256(body).hexdigest(), "size": len(body)}  # fmt: skip
    return web.Response(text=json.dumps(said), headers={"X-Own": "kept", "Connection": "X-Gone", "X-Gone": "1"})


async def close_at_once(request: web.BaseRequest) -> web.StreamResponse:
    assert request.transport is not None
    request.transport.abort()
    return web.Response()


async def too_busy(_request: web.BaseRequest) -> web.StreamResponse:
    return web.Response(status=503, text="busy")


async def until(is_so: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not is_so():
            await asyncio.sleep(0.01)


async def free_port() -> int:
    async with listening(echo) as port:
        return port


async def test_requests_and_answers_pass_as_they_are() -> None:
    async with proxy_to(echo) as room:
        headers = {"X-Mine": "1", "Accept-Encoding": "gzip", "Connection": "X-Hop", "X-Hop": "1"}
        answer, body = await room.ask("PUT", "/a%2Fb//c/../d?x=%20&y", b"text", headers)
        said = json.loads(body)
        names = {name.casefold() for name, _ in said["headers"]}
        assert (answer.status, said["method"], said["path"]) == (200, "PUT", "/a%2Fb//c/../d?x=%20&y")
        assert ["X-Mine", "1"] in said["headers"]
        assert "x-hop" not in names
        assert "user-agent" not in names
        assert (answer.getheader("X-Own"), answer.getheader("X-Gone")) == ("kept", None)
        assert ["X-Forwarded-For", "127.0.0.1"] in said["headers"]
        assert ["Host", f"127.0.0.1:{room.port}"] in said["headers"]
        assert (answer.getheader("X-Millpond-Version"), answer.getheader("X-Millpond-Replica")) == ("v1", "b0")


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, 5_000_000])
@pytest.mark.parametrize("chunked", [False, True])
async def test_bodies_of_any_size_arrive_whole(size: int, chunked: bool) -> None:
    body = os.urandom(size)
    async with proxy_to(echo) as room:
        headers = {"Transfer-Encoding": "chunked"} if chunked else {}
        sent = f"{len(body):x}\r\n".encode() + body + b"\r\n0\r\n\r\n" if chunked and body else body
        sent = b"0\r\n\r\n" if chunked and not body else sent
        _, said = await room.ask("POST", "/", sent, headers)
        assert (json.loads(said)["size"], json.loads(said)["sha"]) == (size, hashlib.sha256(body).hexdigest())


async def test_answers_without_a_body_keep_their_headers() -> None:
    async def head(_request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(headers={"Content-Length": "1234"})

    async def nothing(_request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=304, headers={"ETag": "x"})

    async with proxy_to(head) as room:
        answer, body = await room.ask("HEAD")
        assert (answer.getheader("Content-Length"), body) == ("1234", b"")
    async with proxy_to(nothing) as room:
        answer, body = await room.ask()
        assert (answer.status, answer.getheader("ETag"), body) == (304, "x", b"")


async def test_pieces_pass_when_they_come() -> None:
    go_on = asyncio.Event()

    async def stream(request: web.BaseRequest) -> web.StreamResponse:
        out = web.StreamResponse()
        await out.prepare(request)
        await out.write(b"first")
        await go_on.wait()
        await out.write(b"second")
        return out

    async with proxy_to(stream) as room:
        reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert b"first" in await asyncio.wait_for(reader.readuntil(b"first"), 10)
        go_on.set()
        assert b"second" in await asyncio.wait_for(reader.read(), 10)
        writer.close()


async def test_another_replica_answers_what_one_does_not() -> None:
    async with proxy_to(close_at_once, too_busy, echo) as room:
        for _ in range(6):
            answer, body = await room.ask("POST", "/", b"text")
            assert (answer.status, json.loads(body)["size"]) == (200, 4)
        assert room.proxy.counts["v1"].retries > 0
        assert room.proxy.counts["v1"].requests == 6


async def test_a_replica_that_takes_no_connection_is_told_of() -> None:
    async with proxy_to(echo) as room:
        room.add(await free_port(), "gone")
        answers = [(await room.ask())[0].status for _ in range(4)]
        assert answers == [200] * 4
        assert "gone" in room.unreachable


async def test_what_no_replica_answers_ends_with_one_error() -> None:
    async with proxy_to(close_at_once, retries=2) as room:
        answer, body = await room.ask()
        assert (answer.status, json.loads(body)["error"]["code"]) == (502, "replica_failed")
    async with proxy_to(too_busy) as room:
        assert ((await room.ask())[0].status, (await room.ask())[1]) == (503, b"busy")
    async with proxy_to(queue_timeout_s=0.05) as room:
        answer, body = await room.ask()
        assert (answer.status, answer.getheader("Retry-After")) == (503, "1")


async def test_a_large_body_that_was_sent_is_not_sent_twice() -> None:
    seen = []

    async def read_and_close(request: web.BaseRequest) -> web.StreamResponse:
        seen.append(len(await read_all(request)))
        return await close_at_once(request)

    async with proxy_to(read_and_close) as room:
        answer, _ = await room.ask("POST", "/", bytes(3_000_000))
        assert (answer.status, seen) == (502, [3_000_000])


async def test_an_answer_before_the_body_was_read_is_passed_on() -> None:
    async def too_large(_request: web.BaseRequest) -> web.StreamResponse:
        return web.Response(status=413, headers={"Connection": "close"})

    async with proxy_to(too_large) as room:
        assert (await room.ask("POST", "/", bytes(3_000_000)))[0].status == 413


async def test_an_answer_that_breaks_off_breaks_off_for_the_client() -> None:
    async def half(request: web.BaseRequest) -> web.StreamResponse:
        out = web.StreamResponse()
        await out.prepare(request)
        await out.write(b"half")
        return await close_at_once(request)

    async with proxy_to(half, echo) as room:
        room.balancer.set_open(room.balancer.backends["b1"], False)
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            await room.ask()
        assert room.proxy.counts["v1"].failures == 1


async def test_silence_is_bounded() -> None:
    async def silent(_request: web.BaseRequest) -> web.StreamResponse:
        await asyncio.sleep(30)
        return web.Response()

    async def stalls(request: web.BaseRequest) -> web.StreamResponse:
        out = web.StreamResponse()
        await out.prepare(request)
        await out.write(b"half")
        await asyncio.sleep(30)
        return out

    async with proxy_to(silent, timeout_s=0.1) as room:
        assert (await room.ask())[0].status == 504
    async with proxy_to(stalls, idle_timeout_s=0.1) as room:
        with pytest.raises((http.client.IncompleteRead, ConnectionError)):
            await room.ask()


async def test_a_client_that_stops_sending_or_reading_holds_nothing() -> None:
    async def endless(request: web.BaseRequest) -> web.StreamResponse:
        out = web.StreamResponse()
        await out.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await out.write(bytes(1 << 16))
        return out

    async with proxy_to(endless, idle_timeout_s=0.2) as room:
        _, writer = await asyncio.open_connection("127.0.0.1", room.port, limit=1)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")  # and reads nothing
        await until(lambda: room.proxy.counts.get("v1") is not None)
        await until(lambda: room.balancer.backends["b0"].in_flight == 0)
        assert room.proxy.counts["v1"].failures == 0  # the replica did what it could
        writer.transport.abort()
        reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nhalf")
        assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 408")
        writer.transport.abort()


async def test_a_client_that_asks_first_is_told_to_go_on() -> None:
    async with proxy_to(echo) as room:
        reader, writer = await asyncio.open_connection("127.0.0.1", room.port)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 10) == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"text")
        assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 200")
        writer.transport.abort()


async def test_a_gateway_without_sockets_blames_no_replica() -> None:
    async with proxy_to(echo) as room:
        assert (await room.ask())[0].status == 200  # imports and opens all it needs
        _, writer = await asyncio.open_connection("127.0.0.1", room.port)
        await until(lambda: not room.balancer.backends["b0"].in_flight)
        kept = resource.getrlimit(resource.RLIMIT_NOFILE)
        await room.proxy.close()
        await room.proxy.start()  # without a connection to the replica
        reader, asking = await asyncio.open_connection("127.0.0.1", room.port)
        asking.write(b"GET / HTTP/1.1\r\nHost: x\r\n")
        await asyncio.sleep(0.05)  # the gateway has taken the connection
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, kept[1]))
        try:
            asking.write(b"\r\n")
            assert (await asyncio.wait_for(reader.readline(), 10)).startswith(b"HTTP/1.1 503")
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, kept)
        assert room.unreachable == []
        asking.transport.abort()
        writer.transport.abort()


async def test_a_client_that_leaves_frees_the_replica() -> None:
    came, left = asyncio.Event(), asyncio.Event()

    async def slow(request: web.BaseRequest) -> web.StreamResponse:
        came.set()
        try:
            while request.transport is not None and not request.transport.is_closing():
                await asyncio.sleep(0.01)
        finally:
            left.set()
        return web.Response()

    async with proxy_to(slow) as room:
        _, writer = await asyncio.open_connection("127.0.0.1", room.port)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await asyncio.wait_for(came.wait(), 10)
        writer.transport.abort()
        await asyncio.wait_for(left.wait(), 10)


async def test_what_is_not_plain_http_is_refused() -> None:
    async with proxy_to(echo) as room:
        answer, _ = await room.ask(headers={"Connection": "Upgrade", "Upgrade": "websocket"})
        assert answer.status == 501
        assert (await room.ask(headers={"X-Millpond-Version": "v9"}))[0].status == 404

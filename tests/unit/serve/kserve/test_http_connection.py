"""The HTTP server under the protocol: what clients may send, how slowly, and how much."""

from __future__ import annotations

import asyncio
import gzip
import random
import zlib

import pytest

from millpond.serve.http.kserve import connection
from millpond.serve.servables.messages import InferResponse
from tests.support.waiting import eventually
from tests.unit.serve.kserve.conftest import MAX_BODY, Serve, echo_body, read_reply, request_bytes

LIVE = request_bytes("GET", "/v2/health/live")


async def test_requests_sent_ahead_are_answered_in_order(serve: Serve) -> None:
    served = await serve()
    reader, writer = await served.connect()
    writer.write(b"".join(request_bytes("POST", "/v2/models/echo/infer", echo_body(n)) for n in range(50)))
    values = [(await read_reply(reader)).json()["outputs"][0]["data"] for _ in range(50)]  # type: ignore[index]
    assert values == [[n] for n in range(50)]
    writer.close()


async def test_a_request_may_come_byte_by_byte(serve: Serve) -> None:
    served = await serve()
    reader, writer = await served.connect()
    for byte in request_bytes("POST", "/v2/models/echo/infer", echo_body(3)):
        writer.write(bytes([byte]))
        await writer.drain()
    assert (await read_reply(reader)).status == 200
    writer.close()


async def test_a_chunked_body_is_put_together(serve: Serve) -> None:
    served = await serve()
    reader, writer = await served.connect()
    body = request_bytes("POST", "/", echo_body(1, 2)).partition(b"\r\n\r\n")[2]
    writer.write(b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    for at in range(0, len(body), 7):
        piece = body[at : at + 7]
        writer.write(b"%x\r\n%s\r\n" % (len(piece), piece))
    writer.write(b"0\r\n\r\n")
    assert (await read_reply(reader)).json()["outputs"][0]["data"] == [1, 2]  # type: ignore[index]
    writer.close()


async def test_a_client_that_asks_first_is_told_to_go_on(serve: Serve) -> None:
    served = await serve()
    reader, writer = await served.connect()
    head, _, body = request_bytes(
        "POST", "/v2/models/echo/infer", echo_body(1), {"Expect": "100-continue"}
    ).partition(b"\r\n\r\n")
    writer.write(head + b"\r\n\r\n")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    assert (await read_reply(reader)).status == 200
    writer.close()


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GARBAGE\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost localhost\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * 500 + b"\r\n", 431),
        (b"GET / HTTP/1.1\r\nX: " + b"y" * 100_000, 431),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n", 413),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", 400),
        (b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nExpect: tea\r\n\r\n", 417),
    ],
)
async def test_what_is_no_request_is_refused_and_hung_up_on(serve: Serve, sent: bytes, status: int) -> None:
    served = await serve()
    reader, writer = await served.connect()
    writer.write(sent)
    reply = await read_reply(reader)
    assert reply.status == status
    assert "error" in reply.json()  # type: ignore[operator]  # fails here if it is not so
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_a_chunked_body_past_the_limit_is_refused(serve: Serve) -> None:
    served = await serve()
    reader, writer = await served.connect()
    writer.write(b"POST /v2/models/echo/infer HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    writer.write(b"%x\r\n%s\r\n" % (MAX_BODY + 1, b"x" * (MAX_BODY + 1)))
    assert (await read_reply(reader)).status == 413
    writer.close()


@pytest.mark.parametrize(
    ("coding", "body", "status"),
    [
        ("gzip", gzip.compress(b'{"inputs":[]}', mtime=0), 400),
        ("deflate", zlib.compress(b'{"inputs":[]}'), 400),
        ("gzip", b"not gzip at all", 400),
        ("gzip", gzip.compress(b" " * 100, mtime=0)[:-8], 400),
        ("gzip", gzip.compress(b" " * (MAX_BODY * 100), mtime=0), 413),
        ("br", b"x", 501),
    ],
)
async def test_compressed_bodies_are_bounded_and_checked(serve: Serve, coding: str, body: bytes, status: int) -> None:
    served = await serve()
    reply = await served.infer(body, Content_Encoding=coding)
    assert reply.status == status


async def test_a_client_that_never_finishes_its_head_is_cut_off(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_HEAD_S", 0.1)
    served = await serve()
    reader, writer = await served.connect()
    writer.write(b"GET /v2 HTTP/1.1\r\nX: ")
    assert (await read_reply(reader)).status == 408
    assert (await served.ask("GET", "/v2/health/live")).status == 200
    writer.close()


async def test_a_client_that_goes_away_takes_its_request_with_it(serve: Serve) -> None:
    started, release = asyncio.Event(), asyncio.Event()

    async def wait(instance, requests, replies) -> None:  # type: ignore[no-untyped-def]  # a stand-in
        started.set()
        await release.wait()
        replies.send(0, InferResponse("echo", 1, dict(requests[0].inputs)))

    served = await serve(wait)
    _, writer = await served.connect()
    writer.write(request_bytes("POST", "/v2/models/echo/infer", echo_body(1)))
    await asyncio.wait_for(started.wait(), 10)
    writer.close()
    await eventually(lambda: bool(served.backend.instances[0].cancelled))
    release.set()


async def test_a_draining_port_answers_what_it_has_and_closes(serve: Serve) -> None:
    release = asyncio.Event()

    async def wait(instance, requests, replies) -> None:  # type: ignore[no-untyped-def]  # a stand-in
        await release.wait()
        replies.send(0, InferResponse("echo", 1, dict(requests[0].inputs)))

    served = await serve(wait)
    idle, idle_writer = await served.connect()
    idle_writer.write(LIVE)
    await read_reply(idle)
    reader, writer = await served.connect()
    writer.write(request_bytes("POST", "/v2/models/echo/infer", echo_body(1)))
    await eventually(lambda: bool(served.backend.instances[0].num_open))
    draining = asyncio.create_task(served.port.drain(30))
    assert await asyncio.wait_for(idle.read(), 5) == b""
    release.set()
    assert (await read_reply(reader)).status == 200
    assert await asyncio.wait_for(reader.read(), 5) == b""
    await draining
    writer.close()
    idle_writer.close()


async def test_random_bytes_hurt_nobody(serve: Serve) -> None:
    served = await serve()
    chance = random.Random(7)
    good = request_bytes("POST", "/v2/models/echo/infer", echo_body(1, 2, 3))
    for _ in range(300):
        reader, writer = await served.connect()
        data = bytearray(good)
        for _ in range(chance.randrange(1, 8)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        writer.write(bytes(data[: chance.randrange(1, len(data) + 1)]))
        writer.write_eof()
        answer = await asyncio.wait_for(reader.read(), 10)
        assert not answer.startswith(b"HTTP/1.1 500 Internal Server Error") or b"parse" in answer
        writer.close()
    assert (await served.ask("GET", "/v2/health/ready")).status == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Origin": "http://localhost:3000"}, 200),
        ({"Origin": "https://example.com"}, 403),
    ],
)
async def test_pages_of_foreign_sites_may_not_ask(serve: Serve, headers: dict[str, str], status: int) -> None:
    served = await serve()
    assert (await served.ask("GET", "/v2", headers=headers)).status == status


async def test_a_foreign_host_name_is_refused_on_loopback(serve: Serve) -> None:
    served = await serve()
    reader, writer = await served.connect()
    writer.write(b"GET /v2 HTTP/1.1\r\nHost: example.com\r\n\r\n")
    assert (await read_reply(reader)).status == 403
    writer.close()

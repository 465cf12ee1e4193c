"""What the comparison with a real Triton sends, and how: raw HTTP exchanges and gRPC calls with raw messages.

Knows no models. The corpus makes these; `triton_differential` sends each to both servers.
"""

from __future__ import annotations

import contextlib
import http.client
import mmap
import os
import socket
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, cast

import grpc

from bench.serving.triton_pair import Peer

TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class HttpAsk:
    """A request over HTTP; `raw` stands for the whole of it where it is not well-formed."""

    kind: str
    method: str
    path: str
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    raw: bytes | None = None
    region: str | None = None  # shared memory to read, and to clear, after the answer


@dataclass(frozen=True, slots=True)
class GrpcAsk:
    """A call over gRPC, with the bytes of its messages."""

    kind: str
    rpc: str
    messages: tuple[bytes, ...]
    region: str | None = None


Ask = HttpAsk | GrpcAsk


@dataclass(slots=True)
class Answer:
    """What came back; `status` is an HTTP status, a gRPC code, or what happened to the connection."""

    status: str
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    messages: list[bytes] = field(default_factory=list)
    region: bytes = b""


def send_http(ask: HttpAsk, peer: Peer) -> Answer:
    """Sends one request on a connection of its own."""
    data = ask.raw if ask.raw is not None else _request(ask)
    try:
        with socket.create_connection(("127.0.0.1", peer.http), TIMEOUT_S) as connection:
            connection.sendall(data)
            response = http.client.HTTPResponse(connection, method=ask.method)
            with contextlib.closing(response):
                response.begin()
                body = response.read()
                headers = {name.lower(): value for name, value in response.getheaders()}
                coding = headers.get("content-encoding")
                if coding in ("gzip", "deflate"):
                    body = zlib.decompress(body, 47)
                answer = Answer(str(response.status), headers, body)
    except TimeoutError:
        answer = Answer("silence")
    except (OSError, http.client.HTTPException):
        answer = Answer("closed")
    answer.region = _taken(ask.region)
    return answer


def _request(ask: HttpAsk) -> bytes:
    given = {name.lower() for name, _ in ask.headers}
    lines = [f"{ask.method} {ask.path} HTTP/1.1", "Host: localhost"]
    lines += [f"{name}: {value}" for name, value in ask.headers]
    if "content-length" not in given and "transfer-encoding" not in given:
        lines.append(f"Content-Length: {len(ask.body)}")
    lines.append("Connection: close")
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1") + ask.body


def send_grpc(ask: GrpcAsk, channel: grpc.Channel) -> Answer:
    """Sends one call."""
    path = f"/inference.GRPCInferenceService/{ask.rpc}"
    answer = Answer("OK")
    try:
        if ask.rpc == "ModelStreamInfer":
            stream = channel.stream_stream(path, _same, _same)
            for message in stream(iter(ask.messages), timeout=TIMEOUT_S):
                answer.messages.append(message)
        else:
            answer.messages.append(channel.unary_unary(path, _same, _same)(ask.messages[0], timeout=TIMEOUT_S))
    except grpc.RpcError as error:
        call = cast("Any", error)
        answer.status = call.code().name
        answer.body = (call.details() or "").encode()
    answer.region = _taken(ask.region)
    return answer


def _same(message: bytes) -> bytes:
    return message


@contextlib.contextmanager
def made_region(key: str, data: bytes) -> Iterator[None]:
    """Makes POSIX shared memory for the time of a block."""
    path = f"/dev/shm/{key}"
    with open(path, "wb") as file:
        file.write(data)
    try:
        yield
    finally:
        os.unlink(path)


def _taken(key: str | None) -> bytes:
    """Returns a region's second half, where outputs are, and clears it."""
    if key is None:
        return b""
    with open(f"/dev/shm/{key}", "r+b") as file, mmap.mmap(file.fileno(), 0) as memory:
        half = len(memory) // 2
        data = memory[half:]
        memory[half:] = bytes(half)
        return data

"""What the headers of a call say, and the headers and trailers of an answer, as gRPC over HTTP/2 has them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import quote

from millpond.serve.grpc.http2.hpack import Headers, literal

_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_OURS = (b"content-type", b"te", b"grpc-timeout", b"grpc-encoding", b"grpc-accept-encoding", b"user-agent")
_PLAIN = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
_TYPE = literal(b"content-type", b"application/grpc")
ANSWER = b"\x88" + _TYPE  # 200
TRAILERS_OK = literal(b"grpc-status", b"0")


@dataclass(frozen=True, slots=True)
class CallHead:
    """The headers of a call.

    Attributes:
        path: Of the method, "" when there is none.
        http_status: 200, or what is wrong with it as a request of HTTP.
        timeout_s: How long the client waits; None is for ever.
        encoding: Of compressed messages.
        metadata: What else the client sent.
    """

    path: str
    http_status: int = 200
    timeout_s: float | None = None
    encoding: bytes = b"identity"
    metadata: tuple[tuple[str, str], ...] = ()


def read_head(headers: Headers) -> CallHead:
    """Returns what headers say."""
    values = dict(headers)
    status = 200
    if values.get(b":method") != b"POST":
        status = 405
    elif not values.get(b"content-type", b"").startswith(b"application/grpc"):
        status = 415
    timeout = _TIMEOUT.fullmatch(values.get(b"grpc-timeout", b""))
    return CallHead(
        values.get(b":path", b"").decode("latin-1"),
        status,
        None if timeout is None else int(timeout[1]) * _UNITS[timeout[2]],
        values.get(b"grpc-encoding", b"identity"),
        tuple(
            (name.decode("latin-1"), value.decode("latin-1"))
            for name, value in headers
            if not name.startswith(b":") and name not in _OURS
        ),
    )


def trailers(code: int, details: str) -> bytes:
    """Returns the block that ends an answer with a status."""
    block = literal(b"grpc-status", b"%d" % code)
    if details:
        block += literal(b"grpc-message", quote(details, safe=_PLAIN, errors="replace").encode())
    return block


def refusal(code: int, details: str) -> bytes:
    """Returns the block of an answer that is nothing but a status."""
    return ANSWER + trailers(code, details)


def http_refusal(status: int) -> bytes:
    """Returns the block of an answer to what is no call."""
    return literal(b":status", b"%d" % status)

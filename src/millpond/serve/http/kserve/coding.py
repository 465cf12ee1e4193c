"""gzip and deflate of bodies, with a bound on what a small body may grow to."""

from __future__ import annotations

import zlib

_MIN_COMPRESS = 256
_FAST = 1  # tensors of numbers gain little from more work


class CodingError(Exception):
    """A body cannot be decompressed.

    Args:
        status: What to answer.
        text: What was wrong.
    """

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


def decompress(coding: bytes, body: bytes | memoryview, limit: int) -> bytes | memoryview:
    """Returns a body as it was before its `Content-Encoding`.

    Raises:
        CodingError: The coding is not known, the data is broken, or there is too much of it.
    """
    name = coding.strip().lower()
    if name in (b"identity", b""):
        return body
    if name not in (b"gzip", b"deflate"):
        raise CodingError(501, "Unsupported compression type")
    if not body:
        raise CodingError(400, "nothing to be decompressed")
    # Some clients' "deflate" has no zlib header, others' is gzip.
    bits = 47 if name == b"gzip" or body[:2] == b"\x1f\x8b" or body[0] & 0x0F == 8 else -15
    unpacker = zlib.decompressobj(bits)
    try:
        data = unpacker.decompress(body, limit)
    except zlib.error:
        raise CodingError(400, f"failed to decompress the body as {name.decode()}") from None
    if unpacker.unconsumed_tail:
        raise CodingError(413, f"The body of a request may have {limit} bytes")
    if not unpacker.eof:
        raise CodingError(400, f"failed to decompress the body as {name.decode()}")
    return data


def choose_coding(accepted: bytes | None) -> bytes | None:
    """Returns the coding for a response to a request with this `Accept-Encoding`; None is none."""
    if not accepted:
        return None
    weights: dict[bytes, float] = {}
    for item in accepted.lower().split(b","):
        name, _, rest = item.strip().partition(b";")
        try:
            weights[name.strip()] = float(rest.strip().removeprefix(b"q=")) if rest else 1.0
        except ValueError:
            weights[name.strip()] = 0.0
    best = max((b"gzip", b"deflate"), key=lambda name: weights.get(name, 0.0))
    return best if weights.get(best, 0.0) > 0 and weights.get(b"identity", 0.0) <= weights[best] else None


def compress(coding: bytes, parts: list[bytes | bytearray | memoryview]) -> list[bytes] | None:
    """Returns a body in a coding, or None when it is too small to gain."""
    if sum(map(len, parts)) < _MIN_COMPRESS:
        return None
    packer = zlib.compressobj(_FAST, zlib.DEFLATED, 31 if coding == b"gzip" else 15)
    return [*(packer.compress(part) for part in parts), packer.flush()]

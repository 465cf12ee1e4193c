"""HPACK: the compressed headers of HTTP/2 (RFC 7541), as far as a server of gRPC needs it.

A client sends the same few bytes for the headers of call after call, so a decoder remembers what blocks meant until its
table changes. What we send are literals, which need no state.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")
Headers = list[tuple[bytes, bytes]]
_TABLE_BYTES = 4096
_MAX_BYTES = 64 << 10
_MAX_REMEMBERED = 64
_MAX_REMEMBERED_BYTES = 1024  # of a block
_NAMES = (
    b":authority|:method=GET|:method=POST|:path=/|:path=/index.html|:scheme=http|:scheme=https|:status=200|:status=204|"
    b":status=206|:status=304|:status=400|:status=404|:status=500|accept-charset|accept-encoding=gzip, deflate|"
    b"accept-language|accept-ranges|accept|access-control-allow-origin|age|allow|authorization|cache-control|"
    b"content-disposition|content-encoding|content-language|content-length|content-location|content-range|content-type|"
    b"cookie|date|etag|expect|expires|from|host|if-match|if-modified-since|if-none-match|if-range|if-unmodified-since|"
    b"last-modified|link|location|max-forwards|proxy-authenticate|proxy-authorization|range|referer|refresh|retry-after|"
    b"server|set-cookie|strict-transport-security|transfer-encoding|user-agent|vary|via|www-authenticate"
)
_STATIC = tuple((name, value) for name, _, value in (entry.partition(b"=") for entry in _NAMES.split(b"|")))
# The symbols of each length of the Huffman code; the code is canonical, so that is all there is to it. 256 is the end.
_LENGTHS: dict[int, tuple[int, ...]] = {
    5: (*b"012aceiost",),
    6: (*b" %-./3456789=A_bdfghlmnpru",),
    7: (*b":BCDEFGHIJKLMNOPQRSTUVWYjkqvwxyz",),
    8: (*b"&*,;XZ",),
    10: (*b"!\"()?",),
    11: (*b"'+|",),
    12: (*b"#>",),
    13: (*b"\0$@[]~",),
    14: (*b"^}",),
    15: (*b"<`{",),
    19: (92, 195, 208),
    20: (128, 130, 131, 162, 184, 194, 224, 226),
    21: (153, 161, 167, 172, 176, 177, 179, 209, 216, 217, 227, 229, 230),
    22: (129, 132, 133, 134, 136, 146, 154, 156, 160, 163, 164, 169, 170, 173, 178, 181, 185, 186, 187, 189, 190, 196,
         198, 228, 232, 233),
    23: (1, 135, 137, 138, 139, 140, 141, 143, 147, 149, 150, 151, 152, 155, 157, 158, 165, 166, 168, 174, 175, 180,
         182, 183, 188, 191, 197, 231, 239),
    24: (9, 142, 144, 145, 148, 159, 171, 206, 215, 225, 236, 237),
    25: (199, 207, 234, 235),
    26: (192, 193, 200, 201, 202, 205, 210, 213, 218, 219, 238, 240, 242, 243, 255),
    27: (203, 204, 211, 212, 214, 221, 222, 223, 241, 244, 245, 246, 247, 248, 250, 251, 252, 253, 254),
    28: (2, 3, 4, 5, 6, 7, 8, 11, 12, 14, 15, 16, 17, 18, 19, 20, 21, 23, 24, 25, 26, 27, 28, 29, 30, 31, 127, 220,
         249),
    30: (10, 13, 22, 256),
}  # fmt: skip


class HpackError(Exception):
    """A block of headers cannot be read; the connection is of no use any more."""


class HeaderDecoder(Generic[T]):
    """Reads the header blocks of one connection, in their order.

    Args:
        make: Turns the headers of a block into what is wanted of them; must not change or depend on anything.
    """

    def __init__(self, make: Callable[[Headers], T]) -> None:
        self._make = make
        self._table: deque[tuple[bytes, bytes]] = deque()  # the newest entry is the first
        self._table_bytes = 0
        self._most_bytes = _TABLE_BYTES
        self._remembered: dict[bytes, T] = {}

    def decode(self, block: bytes) -> T:
        """Returns what a whole block says.

        Raises:
            HpackError: It cannot be read.
        """
        found = self._remembered.get(block)
        if found is not None:
            return found
        try:
            headers, changed = self._read(block)
        except IndexError:
            raise HpackError("a block of headers is cut off") from None
        made = self._make(headers)
        if changed or len(self._remembered) >= _MAX_REMEMBERED:
            self._remembered.clear()
        if not changed and len(block) <= _MAX_REMEMBERED_BYTES:
            self._remembered[block] = made
        return made

    def remembered(self, block: bytes) -> T | None:
        """Returns what `decode` would make of a block, where it knows that without reading it."""
        return self._remembered.get(block)

    def _read(self, block: bytes) -> tuple[Headers, bool]:
        headers: Headers = []
        at, num_bytes, changed = 0, 0, False
        while at < len(block):
            first = block[at]
            if first & 0x80:
                index, at = _integer(block, at, 7)
                entry = self._entry(index)
            elif first & 0xE0 == 0x20:
                size, at = _integer(block, at, 5)
                if size > _TABLE_BYTES:
                    raise HpackError("the table of headers would be larger than it may be")
                self._most_bytes, changed = size, True
                self._evict()
                continue
            else:
                is_kept = bool(first & 0x40)
                index, at = _integer(block, at, 6 if is_kept else 4)
                if index:
                    name = self._entry(index)[0]
                else:
                    name, at = _string(block, at)
                value, at = _string(block, at)
                entry = (name, value)
                if is_kept:
                    changed = True
                    self._insert(entry)
            num_bytes += len(entry[0]) + len(entry[1]) + 32
            if num_bytes > _MAX_BYTES:
                raise HpackError("too many headers")
            headers.append(entry)
        return headers, changed

    def _entry(self, index: int) -> tuple[bytes, bytes]:
        if 1 <= index <= len(_STATIC):
            return _STATIC[index - 1]
        if not index or index > len(_STATIC) + len(self._table):
            raise HpackError(f"there is no header {index} in the table")
        return self._table[index - len(_STATIC) - 1]

    def _insert(self, entry: tuple[bytes, bytes]) -> None:
        self._table.appendleft(entry)
        self._table_bytes += len(entry[0]) + len(entry[1]) + 32
        self._evict()

    def _evict(self) -> None:
        while self._table_bytes > self._most_bytes:
            name, value = self._table.pop()
            self._table_bytes -= len(name) + len(value) + 32


def literal(name: bytes, value: bytes) -> bytes:
    """Returns a header as a literal that changes no table."""
    return b"\x00" + _sized(name) + _sized(value)


def _sized(text: bytes) -> bytes:
    size = len(text)
    if size < 127:
        return bytes([size]) + text
    size -= 127
    encoded = bytearray([127])
    while size >= 128:
        encoded.append(size & 0x7F | 0x80)
        size >>= 7
    encoded.append(size)
    return bytes(encoded) + text


def _integer(block: bytes, at: int, num_bits: int) -> tuple[int, int]:
    mask = (1 << num_bits) - 1
    value = block[at] & mask
    at += 1
    if value < mask:
        return value, at
    for shift in range(0, 28, 7):
        byte = block[at]
        at += 1
        value += (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
    raise HpackError("a number in a block of headers is too large")


def _string(block: bytes, at: int) -> tuple[bytes, int]:
    is_packed = bool(block[at] & 0x80)
    size, at = _integer(block, at, 7)
    end = at + size
    if end > len(block):
        raise HpackError("a text in a block of headers is cut off")
    text = block[at:end]
    return (_unpacked(text) if is_packed else text), end


@functools.cache
def _codes() -> dict[tuple[int, int], int]:
    codes: dict[tuple[int, int], int] = {}
    code = length = 0
    for size, symbols in _LENGTHS.items():
        code <<= size - length
        length = size
        for symbol in symbols:
            codes[size, code] = symbol
            code += 1
    return codes


def _unpacked(text: bytes) -> bytes:
    codes = _codes()
    found = bytearray()
    code = length = 0
    for byte in text:
        for shift in range(7, -1, -1):
            code = code << 1 | byte >> shift & 1
            length += 1
            symbol = codes.get((length, code))
            if symbol is not None:
                if symbol == 256:
                    raise HpackError("the end of the code stands inside a text")
                found.append(symbol)
                code = length = 0
            elif length > 30:
                raise HpackError("a text is not in the code")
    if length > 7 or code != (1 << length) - 1:
        raise HpackError("a text does not end as the code does")
    return bytes(found)

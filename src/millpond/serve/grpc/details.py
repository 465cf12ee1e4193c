"""`bounded`: the text of an error as gRPC can carry it.

A call's status travels in trailers, and clients drop the whole answer when those are larger than 8 KiB; texts that name
what a client sent (a shape of a thousand dimensions) would be. Called by every service before it ends a call.
"""

from __future__ import annotations

from collections.abc import Iterable
from urllib.parse import quote

_MAX_BYTES = 4096  # as it is encoded; half of what clients take
_PLAIN = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
_CUT = " ... "


def bounded(text: str) -> str:
    """Returns the text; of one that is too long the beginning and the end."""
    if len(text) * 12 <= _MAX_BYTES or _size(text) <= _MAX_BYTES:  # a character has four bytes, each %XX, at most
        return text
    most = _MAX_BYTES // 2 - len(_CUT)
    return text[: _count(text, most)] + _CUT + text[-_count(reversed(text), most) :]


def _count(text: Iterable[str], most: int) -> int:
    """Returns how many characters have at most so many bytes."""
    count = size = 0
    for character in text:
        size += _size(character)
        if size > most:
            break
        count += 1
    return count


def _size(text: str) -> int:
    return len(quote(text, safe=_PLAIN, errors="replace"))

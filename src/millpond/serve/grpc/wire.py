"""Protobuf's wire form where a message is put together from bytes: fields with a length."""

from __future__ import annotations

SHORT_TEXT = 64  # bytes; what is before a shorter one is remembered by its length, which all lengths around it hang on


def varint(value: int) -> bytes:
    """Returns a number that is not negative."""
    if value < 0x80:
        return bytes((value,))
    parts = bytearray()
    while value >= 0x80:
        parts.append(value & 0x7F | 0x80)
        value >>= 7
    parts.append(value)
    return bytes(parts)


def field(tag: bytes, content: bytes) -> bytes:
    """Returns a field of text, bytes or a message; `tag` is its number and that it has a length."""
    return b"".join((tag, varint(len(content)), content))

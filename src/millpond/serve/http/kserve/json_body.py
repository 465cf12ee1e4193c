"""Bodies as JSON: reading what clients send, with the words Triton's parser has for what is wrong with it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from millpond.serve.http.kserve.json_faults import find_fault
from millpond.serve.kserve.parameters import ClientFault, FieldError

_MAX_SCANNED = 64 << 10  # a larger body's fault is not worth the event loop's time
_decoder = msgspec.json.Decoder()


def read_json(body: bytes | memoryview) -> Any:
    """Parses a body.

    Raises:
        ClientFault: It is not JSON.
    """
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return _read_slowly(bytes(body))


def write_json(document: object, *, has_no_numbers: bool = False) -> bytes:
    """Returns a document as JSON; `has_no_numbers` says that floats among it are not all finite."""
    if has_no_numbers:
        return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "replace")
    return msgspec.json.encode(document)


def member(document: Mapping[str, Any], name: str) -> Any:
    """Returns a member of an object.

    Raises:
        FieldError: There is none.
    """
    try:
        return document[name]
    except (KeyError, TypeError):
        raise FieldError(name, f"attempt to access non-existing object member '{name}'") from None


def text(value: object, name: str) -> str:
    """Returns a value that must be a string.

    Raises:
        FieldError: It is not.
    """
    if not isinstance(value, str):
        raise FieldError(name, "attempt to access JSON non-string as string")
    return value


def array(value: object, name: str) -> Sequence[Any]:
    """Returns a value that must be an array.

    Raises:
        FieldError: It is not.
    """
    if not isinstance(value, list):
        raise FieldError(name, "attempt to access JSON non-array as array")
    return value


def mapping(value: object, name: str) -> Mapping[str, Any]:
    """Returns a value that must be an object.

    Raises:
        FieldError: It is not.
    """
    if not isinstance(value, dict):
        raise FieldError(name, "attempt to access JSON non-object as object")
    return value


def whole(value: object, name: str) -> int:
    """Returns a value that must be an integer of 64 bits.

    Raises:
        FieldError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not -(1 << 63) <= value < 1 << 63:
        raise FieldError(name, "attempt to access JSON non-signed-integer as signed-integer")
    return value


def members(value: object, before: str = "") -> Mapping[str, Any]:
    """Returns a value that must be an object, where Triton asks for its members at once.

    Raises:
        ClientFault: It is none.
    """
    if not isinstance(value, dict):
        raise ClientFault(f"{before}attempt to get members for non-object")
    return value


def natural(value: object, name: str) -> int:
    """Returns a value that must be an integer of 64 bits and not negative.

    Raises:
        FieldError: It is not.
    """
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 63:
        raise FieldError(name, "attempt to access JSON non-unsigned-integer as unsigned-integer")
    return value


def _read_slowly(body: bytes) -> Any:
    """Accepts what only Triton does (NaN, Infinity, bytes that are no UTF-8), and else says what is wrong where."""
    if len(body) <= _MAX_SCANNED:
        fault = find_fault(body.decode("latin-1"))
        if fault is not None:
            raise ClientFault(f"failed to parse the request JSON buffer: {fault[0]} at {fault[1]}")
    try:
        return json.loads(body.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "replace"))
    except json.JSONDecodeError as error:
        raise ClientFault(f"failed to parse the request JSON buffer: Invalid value. at {error.pos}") from None
    except (RecursionError, ValueError):
        words = "Terminate parsing due to Handler error."
        raise ClientFault(f"failed to parse the request JSON buffer: {words} at 0") from None

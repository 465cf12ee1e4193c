"""Request bodies: read with a limit and a deadline, checked as JSON, decoded into a msgspec struct.

Everything wrong with a body is found here and is a 4xx: size, content type, encoding, syntax, NaN, depth, duplicate
keys, lone surrogates, wrong types. Called by every POST route; knows no fields.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn, TypeVar

import msgspec
from starlette.requests import ClientDisconnect, Request

from millpond.serve.gateway import Gateway
from millpond.serve.http.errors import ApiError, invalid

T = TypeVar("T")

MAX_DEPTH = 100
_LARGE_BYTES = 64 << 10  # parsing this much takes about as long as a short step of the engine
_MISSING = re.compile(r"missing required field `(?P<name>\w+)`")
_PATH = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")


async def decode_body(
    request: Request, gateway: Gateway, kind: type[T], refused: Mapping[str, str], limit: int | None = None
) -> T:
    """Reads the body of a request as one of our structs.

    Args:
        request: Whose body to read.
        gateway: For its limits and threads.
        kind: The struct.
        refused: Fields that are an error when they ask for something, and why.
        limit: Most bytes, where a port has a limit of its own.

    Raises:
        ApiError: With the status and the field at fault.
    """
    _check_headers(request)
    body = await _read(request, limit or gateway.settings.max_body_bytes, gateway.settings.body_timeout_s)
    if len(body) > _LARGE_BYTES:
        return await gateway.in_thread(lambda: decode_json(body, kind, refused))
    return decode_json(body, kind, refused)


def decode_json(body: bytes, kind: type[T], refused: Mapping[str, str]) -> T:
    """Decodes JSON strictly; see `decode_body`.

    Raises:
        ApiError: Status 400, `param` naming the field.
    """
    value = _parse(body)
    for name, reason in refused.items():
        if isinstance(value, dict) and value.get(name) not in (None, False, "", [], {}):
            raise invalid(reason, param=name, code="unsupported_parameter")
    try:
        return msgspec.json.decode(body, type=kind)
    except msgspec.ValidationError as error:
        raise _validation_error(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise _syntax_error(error) from None


def _check_headers(request: Request) -> None:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise ApiError(
            415,
            f"The body's content type is {kind or 'not given'!r}. Send Content-Type: application/json.",
            code="unsupported_media_type",
        )
    if request.headers.get("content-encoding", "identity").lower() != "identity":
        raise ApiError(415, "Compressed bodies are not read. Send it as it is.", code="unsupported_media_type")


async def _read(request: Request, limit: int, timeout_s: float) -> bytes:
    length = request.headers.get("content-length", "")
    if length.isdecimal() and (len(length) > 18 or int(length) > limit):
        raise _too_large(limit)
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                chunks.append(chunk)
    except TimeoutError:
        raise ApiError(408, f"The body did not arrive within {timeout_s:g} s.", code="request_timeout") from None
    except ClientDisconnect:
        raise ApiError(499, "The client went away.", code="client_closed_request") from None
    return b"".join(chunks)


def _too_large(limit: int) -> ApiError:
    return ApiError(413, f"The body is larger than {limit} bytes.", code="request_too_large")


def _parse(body: bytes) -> Any:
    """Refuses what msgspec lets pass: duplicate keys and nesting that later readers of the value could not take."""
    try:
        value = json.loads(body.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise _syntax_error(error) from None
    _check_depth(value)
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: set[str] = set()
        name = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {_short(name)} is given twice")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [child for parent in level for child in _children(parent)]
        if not level:
            return
    raise invalid(f"The body is nested deeper than {MAX_DEPTH} levels.", code="invalid_json")


def _children(value: Any) -> list[Any]:
    items: Any = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [item for item in items if item.__class__ is dict or item.__class__ is list]


def _syntax_error(error: Exception) -> ApiError:
    if isinstance(error, RecursionError):
        reason = "it is nested too deeply"
    elif isinstance(error, UnicodeDecodeError):
        reason = "it is not UTF-8"
    else:
        reason = str(error)
    return invalid(f"The body is not valid JSON: {reason}.", code="invalid_json")


def _validation_error(text: str) -> ApiError:
    match = _PATH.search(text)
    path = "" if match is None else match["path"].lstrip(".")
    problem = text if match is None else text[: match.start()]
    missing = _MISSING.search(problem)
    if missing is not None:
        return invalid(f"{problem}.", param=f"{path}.{missing['name']}".lstrip("."), code="missing_parameter")
    return invalid(f"{problem} in {path or 'the body'}.", param=path or None, code="invalid_type")


def _short(text: str) -> str:
    return ascii(text if len(text) <= 40 else text[:40] + "...")

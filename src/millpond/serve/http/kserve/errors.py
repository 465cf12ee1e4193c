"""Errors over HTTP: Triton's table of status codes, and the strict one."""

from __future__ import annotations

import math

from millpond.serve.http.kserve.exchange import JSON, Exchange
from millpond.serve.http.kserve.json_body import write_json
from millpond.serve.servables.errors import ErrorCode, ServableError

_COMPATIBLE: dict[ErrorCode, int] = {"internal": 500, "not_found": 404, "unavailable": 503, "unsupported": 501}
_STRICT: dict[ErrorCode, int] = {
    **_COMPATIBLE, "unknown": 500, "unsupported": 400, "already_exists": 409, "cancelled": 499
}  # fmt: skip


def status_of(error: ServableError, *, is_strict: bool) -> int:
    """Returns the status code of an error."""
    if is_strict:
        return 400 if error.is_client_fault else _STRICT.get(error.code, 400)
    return _COMPATIBLE.get(error.code, 400)


def error_body(text: str) -> bytes:
    """Returns the body of an error."""
    try:
        return write_json({"error": text})
    except UnicodeEncodeError:
        return write_json({"error": text.encode("utf-8", "replace").decode()})


def respond_error(exchange: Exchange, error: ServableError, *, is_strict: bool, content_type: bytes = JSON) -> None:
    """Answers with an error."""
    headers = []
    if error.retry_after_s is not None:
        headers.append((b"Retry-After", b"%d" % math.ceil(error.retry_after_s)))
    exchange.respond(
        status_of(error, is_strict=is_strict), [error_body(error.message)], JSON if is_strict else content_type, headers
    )

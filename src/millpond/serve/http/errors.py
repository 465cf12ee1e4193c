"""The OpenAI error object, and which status each of Millpond's errors has.

Everything that goes wrong on the HTTP side becomes an `ApiError`: routes raise it or a `MillpondError`, the edge and
Starlette's exception handlers turn either into a response here.
"""

from __future__ import annotations

import math
from http import HTTPStatus

import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from millpond.api.request import ErrorInfo
from millpond.base.errors import MillpondError, QueueFullError

RETRY_AFTER_S = 2.0

# MillpondError.code -> (status, type). What is not listed is our fault: 500.
_STATUS = {
    "invalid_request": (400, "invalid_request_error"),
    "context_length_exceeded": (400, "invalid_request_error"),
    "model_not_found": (404, "invalid_request_error"),
    "queue_full": (429, "rate_limit_error"),
    "engine_dead": (503, "overloaded_error"),
    "cancelled": (503, "overloaded_error"),
    "deadline_exceeded": (504, "timeout_error"),
}


class ErrorBody(msgspec.Struct, frozen=True):
    """The inner object of an error response."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorReply(msgspec.Struct, frozen=True):
    """What every response of status 400 and above holds."""

    error: ErrorBody


class ApiError(Exception):
    """An error with its HTTP status.

    Args:
        status: The HTTP status.
        message: What was wrong and what to do, for a person.
        code: A stable word for programs.
        param: The field of the request at fault.
        retry_after_s: When it makes sense to try again, if it does.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str,
        type: str = "invalid_request_error",
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.body = ErrorBody(message, type, param, code)
        self.retry_after_s = retry_after_s

    def json(self) -> bytes:
        """Returns the error object."""
        return msgspec.json.encode(ErrorReply(self.body))

    def headers(self) -> dict[str, str]:
        """Returns the headers that belong to it: when to retry, or that it is no use."""
        if self.retry_after_s is not None:
            return {"Retry-After": str(max(1, math.ceil(self.retry_after_s)))}
        # The OpenAI clients retry 5xx by themselves; a request that ran out of its time would run out of it again.
        return {"x-should-retry": "false"} if self.status == 504 else {}

    def response(self) -> Response:
        """Returns the whole response."""
        return Response(self.json(), self.status, headers=self.headers(), media_type="application/json")


def invalid(message: str, param: str | None = None, code: str = "invalid_request") -> ApiError:
    """Returns a 400 for a request that can never succeed as it was sent."""
    return ApiError(400, message, code=code, param=param)


def from_error(error: MillpondError) -> ApiError:
    """Returns the HTTP form of one of our own errors."""
    status, kind = _STATUS.get(error.code, (500, "server_error"))
    retry_after_s = None
    if isinstance(error, QueueFullError):
        retry_after_s = error.retry_after_s
    elif status == 503:
        retry_after_s = RETRY_AFTER_S
    return ApiError(status, str(error), code=error.code, type=kind, param=error.param, retry_after_s=retry_after_s)


def from_event(error: ErrorInfo) -> ApiError:
    """Returns the HTTP form of an error that reached a request after admission."""
    status, kind = _STATUS.get(error.code, (500, "server_error"))
    return ApiError(
        status, error.message, code=error.code, type=kind, retry_after_s=RETRY_AFTER_S if status in (429, 503) else None
    )


def internal_error() -> ApiError:
    """Returns the 500 that says nothing of what happened inside; the log does."""
    return ApiError(
        500, "The server made a mistake. Its log has the details.", code="internal_error", type="server_error"
    )


async def answer_error(request: Request, error: Exception) -> Response:
    """Starlette exception handler for `ApiError`, `MillpondError` and `HTTPException`."""
    if isinstance(error, ApiError):
        return error.response()
    if isinstance(error, MillpondError):
        return from_error(error).response()
    assert isinstance(error, HTTPException)
    return _from_http(request, error).response()


def _from_http(request: Request, error: HTTPException) -> ApiError:
    if error.status_code == 404:
        return ApiError(404, f"Unknown URL: {request.method} {request.url.path}.", code="unknown_url")
    if error.status_code == 405:
        return _MethodError(request, dict(error.headers or {}))
    phrase = HTTPStatus(error.status_code).phrase
    return ApiError(error.status_code, f"{phrase}.", code=phrase.lower().replace(" ", "_"))


class _MethodError(ApiError):
    def __init__(self, request: Request, headers: dict[str, str]) -> None:
        super().__init__(405, f"{request.url.path} does not know {request.method}.", code="method_not_allowed")
        self._headers = headers

    def headers(self) -> dict[str, str]:
        return self._headers

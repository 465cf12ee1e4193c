"""TGI's errors: a text and a kind, a status for each kind, and the two forms they are answered in.

The compatible form is TGI's to the letter: what its web framework refuses (no JSON, no key, no such route) is plain
text or nothing at all. The strict form answers everything as a JSON object. Streams carry errors as events.
"""

from __future__ import annotations

import logging
import math

import msgspec
from starlette.responses import Response

from millpond.base.errors import MillpondError, QueueFullError, RequestError
from millpond.serve.http.errors import RETRY_AFTER_S, ApiError

_log = logging.getLogger("millpond.serve")

_STATUS = {
    "validation": 422,
    "template_error": 422,
    "tool_error": 422,
    "generation": 424,
    "overloaded": 429,
    "incomplete_generation": 500,
    "healthcheck": 503,
}
# What TGI's web framework says before a text of its own; `body.py` finds the same faults.
_REJECTIONS = {
    "unsupported_media_type": "Expected request with `Content-Type: application/json`",
    "invalid_json": "Failed to parse the request body as JSON: ",
    "invalid_type": "Failed to deserialize the JSON body into the target type: ",
    "missing_parameter": "Failed to deserialize the JSON body into the target type: ",
    "request_too_large": "Failed to buffer the request body: length limit exceeded",
}
_REJECTION_STATUS = {"invalid_type": 422, "missing_parameter": 422}


class ErrorReply(msgspec.Struct, frozen=True):
    """What a refused or failed request is answered with."""

    error: str
    error_type: str


class StreamErrorBody(msgspec.Struct, frozen=True):
    """The inner object of an error event of /v1."""

    message: str
    http_status_code: int


class StreamError(msgspec.Struct, frozen=True):
    """The error event of /v1 streams."""

    error: StreamErrorBody


class TgiError(Exception):
    """An error as TGI tells it.

    Args:
        kind: TGI's word for it.
        text: What was wrong, prefix included.
        status: The HTTP status where it is not the kind's own.
        plain: The compatible form's whole body, where that is no JSON object.
        retry_after_s: When it makes sense to try again, if it does.
    """

    def __init__(
        self,
        kind: str,
        text: str,
        *,
        status: int | None = None,
        plain: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(text)
        self.kind = kind
        self.text = text
        self.status = _STATUS[kind] if status is None else status
        self.plain = plain
        self.retry_after_s = retry_after_s

    def json(self) -> bytes:
        """Returns the error object."""
        return msgspec.json.encode(ErrorReply(self.text, self.kind))

    def stream_json(self) -> bytes:
        """Returns the error object of /v1 streams."""
        return msgspec.json.encode(StreamError(StreamErrorBody(self.text, self.status)))

    def response(self, is_strict: bool) -> Response:
        """Returns the whole response."""
        headers = {}
        if self.retry_after_s is not None:
            headers["Retry-After"] = str(max(1, math.ceil(self.retry_after_s)))
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.plain is None or is_strict:
            return Response(self.json(), self.status, headers=headers, media_type="application/json")
        return Response(self.plain, self.status, headers=headers, media_type="text/plain" if self.plain else None)


def validation(text: str) -> TgiError:
    """Returns the error of a request that can never succeed as it was sent."""
    return TgiError("validation", f"Input validation error: {text}")


def overloaded(retry_after_s: float = 1.0) -> TgiError:
    """Returns the error of a request for which there is no place."""
    return TgiError("overloaded", "Model is overloaded", retry_after_s=retry_after_s)


def as_tgi(error: Exception) -> TgiError:
    """Returns TGI's form of any error; an unexpected one is logged and told in general terms."""
    if isinstance(error, TgiError):
        return error
    if isinstance(error, ApiError):
        return _from_api(error)
    if isinstance(error, MillpondError):
        return _from_own(error)
    _log.error("a request failed", exc_info=error)
    return TgiError("incomplete_generation", "Incomplete generation")


def _from_own(error: MillpondError) -> TgiError:
    if isinstance(error, RequestError):
        return validation(str(error))
    if isinstance(error, QueueFullError):
        return overloaded(error.retry_after_s)
    if error.code == "engine_dead":
        return TgiError("healthcheck", f"unhealthy: {error}", retry_after_s=RETRY_AFTER_S)
    return TgiError("generation", f"Request failed during generation: {error}")


def _from_api(error: ApiError) -> TgiError:
    code, message = error.body.code or "", error.body.message
    prefix = _REJECTIONS.get(code)
    if prefix is None:
        return TgiError("validation", message, status=error.status, plain=message)
    plain = prefix + message if prefix.endswith(": ") else prefix
    return TgiError("validation", message, status=_REJECTION_STATUS.get(code, error.status), plain=plain)

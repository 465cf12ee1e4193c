"""`TritonError`, which a response carries, and `TritonModelException`, which the API raises."""

from __future__ import annotations

from millpond.serve.servables.errors import ErrorCode

_CODES: tuple[ErrorCode, ...] = (
    "unknown",
    "internal",
    "not_found",
    "invalid_argument",
    "unavailable",
    "unsupported",
    "already_exists",
    "cancelled",
)


class TritonError:
    """An error of one request.

    Args:
        message: What the client reads.
        code: One of the class's constants.
    """

    UNKNOWN, INTERNAL, NOT_FOUND, INVALID_ARG, UNAVAILABLE, UNSUPPORTED, ALREADY_EXISTS, CANCELLED = range(8)

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        if not 0 <= code < len(_CODES):
            raise TritonModelException(f"{code} is no code of TritonError")
        self._message = message
        self._code = code

    def message(self) -> str:
        """Returns the text."""
        return self._message

    def code(self) -> int:
        """Returns the code."""
        return self._code

    def __str__(self) -> str:
        return self._message


class TritonModelException(Exception):
    """The API was used in a way it does not allow, or the server refused."""

    def message(self) -> str:
        """Returns the text."""
        return str(self)


def code_name(code: int) -> ErrorCode:
    """Returns the servables' word for a code."""
    return _CODES[code]


def code_number(name: ErrorCode) -> int:
    """Returns the code for a servables' word."""
    return _CODES.index(name)

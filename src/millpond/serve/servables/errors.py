"""`ServableError`: the one error a servable, a batcher or the repository raises towards a protocol.

The code is protocol-neutral; every adapter holds one table from code to its own status. The text is what a client sees,
so it never carries a path of this machine or a secret.
"""

from __future__ import annotations

from typing import Literal

ErrorCode = Literal[
    "unknown",
    "internal",
    "not_found",
    "invalid_argument",
    "unavailable",
    "unsupported",
    "already_exists",
    "cancelled",
]

WORDS: dict[ErrorCode, str] = {
    "unknown": "Unknown",
    "internal": "Internal",
    "not_found": "Not found",
    "invalid_argument": "Invalid argument",
    "unavailable": "Unavailable",
    "unsupported": "Unsupported",
    "already_exists": "Already exists",
    "cancelled": "Cancelled",
}


class ServableError(Exception):
    """A request to a servable, or an action on the repository, failed.

    Args:
        code: What kind of failure.
        message: What a client reads, one sentence or more.
        retry_after_s: When to come again; None when it is not a matter of time.
        is_client_fault: Whether the request was wrong although the code, which is the original protocol's, says
            otherwise; a strict form tells it as such.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        retry_after_s: float | None = None,
        is_client_fault: bool = False,
    ) -> None:
        super().__init__(message)
        self.code: ErrorCode = code
        self.message = message
        self.retry_after_s = retry_after_s
        self.is_client_fault = is_client_fault

"""The errors Millpond raises on purpose.

Every error a user can cause or meet carries a stable code, what went wrong, and what to do about it. Adapters
translate the code into their protocol's status; the CLI prints the three parts. Anything else that escapes is a bug.
"""

from __future__ import annotations


class MillpondError(Exception):
    """Base of every expected error.

    Args:
        message: What was wrong and where, one sentence.
        fix: What the user can do about it, one sentence; empty when there is nothing to do.
        param: The option or request field at fault, if there is one.
    """

    code = "internal_error"

    def __init__(self, message: str, *, fix: str = "", param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.fix = fix
        self.param = param

    def __str__(self) -> str:
        return f"{self.message} {self.fix}".strip()


class ConfigError(MillpondError):
    """An option or a config file asks for something that does not exist or cannot be done."""

    code = "invalid_config"


class CheckpointError(MillpondError):
    """A model's files are missing, truncated, corrupt or of a kind that is not supported."""

    code = "invalid_checkpoint"


class FetchError(MillpondError):
    """A model could not be fetched: no network, no space, or not the file it should be."""

    code = "fetch_failed"


class RequestError(MillpondError):
    """A request that can never succeed as it was sent. Raised at admission, before any work starts."""

    code = "invalid_request"


class ContextLengthError(RequestError):
    """Prompt plus requested output do not fit the model's context or the KV cache."""

    code = "context_length_exceeded"


class ModelNotFoundError(RequestError):
    """The request names a model that this server does not serve."""

    code = "model_not_found"


class QueueFullError(MillpondError):
    """The bounded queue is full; try again after `retry_after_s` seconds."""

    code = "queue_full"

    def __init__(self, message: str, *, retry_after_s: float = 1.0, fix: str = "") -> None:
        super().__init__(message, fix=fix)
        self.retry_after_s = retry_after_s


class EngineDeadError(MillpondError):
    """The engine process ended while it held the request, or is not up yet."""

    code = "engine_dead"


class DeadlineError(MillpondError):
    """The request's own deadline passed before it finished."""

    code = "deadline_exceeded"


class CancelledError(MillpondError):
    """The request was cancelled by its client or by a drain."""

    code = "cancelled"

"""How many requests may be open at once."""

from __future__ import annotations

from millpond.compat.mindspore_serving.server._process import HOST
from millpond.compat.mindspore_serving.server.checks import check_int

__all__ = ["get_max_enqueued_requests", "set_max_enqueued_requests"]


def set_max_enqueued_requests(max_enqueued_requests: int) -> None:
    """Sets the bound; requests beyond it are refused.

    Raises:
        RuntimeError: It is no number of at least 1.
    """
    HOST.max_enqueued_requests = check_int("max_enqueued_requests", max_enqueued_requests, 1)


def get_max_enqueued_requests() -> int:
    """Returns the bound."""
    return HOST.max_enqueued_requests

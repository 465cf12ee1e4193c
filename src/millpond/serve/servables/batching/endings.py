"""The errors with which a scheduler ends a wait, and how it hands them over."""

from __future__ import annotations

from collections.abc import Callable

from millpond.serve.servables.calls import Call
from millpond.serve.servables.checking import prefix_of
from millpond.serve.servables.errors import ServableError

Fail = Callable[[Call, ServableError], None]


def timed_out(call: Call) -> ServableError:
    """The request waited as long as it may."""
    return ServableError("unavailable", f"{prefix_of(call.request)}Request timeout expired")


def queue_full(call: Call) -> ServableError:
    """There is no room to wait."""
    return ServableError("unavailable", f"{prefix_of(call.request)}Exceeds maximum queue size", retry_after_s=1.0)

"""`Shared`: what all servables of one registry have in common."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from millpond.serve.servables.batching.rates import RateLimiter
from millpond.serve.servables.cache import ResponseCache
from millpond.serve.servables.limits import ServableLimits


@dataclass(frozen=True, slots=True)
class Shared:
    """Bounds, the clock, and what servables compete for.

    Attributes:
        limits: Bounds.
        clock: Nanoseconds, `time.monotonic_ns`.
        cache: None when there is no response cache.
        rates: None when nothing is rate limited.
    """

    limits: ServableLimits
    clock: Callable[[], int]
    cache: ResponseCache | None = None
    rates: RateLimiter | None = None

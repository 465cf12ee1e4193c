"""`ServableLimits`: every bound that the registry and its batchers keep, in one place.

Each number stops one way in which a client or a broken servable could take the server's memory or time. Plain data:
whoever starts the registry fills it in from the settings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ServableLimits:
    """Bounds of one registry.

    Attributes:
        max_waiting: Most requests of one servable that wait for an instance.
        max_wait_s: Longest such wait, also for servables without a timeout of their own.
        max_sequences: Most open sequences of one servable.
        max_unread_responses: Most responses a stream's client may leave unread before it is cut off.
        max_ensemble_depth: Most ensembles inside each other.
        drain_s: How long a servable that was removed may finish what it has accepted.
        restart_first_s: Wait before the second attempt to restart a crashed instance; the first comes at once.
        restart_longest_s: The wait doubles up to this.
        restart_settled_s: An instance that lived this long starts from the first wait again.
        cache_bytes: Size of the response cache; 0 is none.
        rate_limit: Whether instance groups' resources count.
        rate_resources: How much there is of each; a resource not named has what the neediest instance asks for.
    """

    max_waiting: int = 10_000
    max_wait_s: float = 600.0
    max_sequences: int = 10_000
    max_unread_responses: int = 10_000
    max_ensemble_depth: int = 16
    drain_s: float = 30.0
    restart_first_s: float = 0.25
    restart_longest_s: float = 30.0
    restart_settled_s: float = 60.0
    cache_bytes: int = 0
    rate_limit: bool = False
    rate_resources: Mapping[str, int] = field(default_factory=dict)

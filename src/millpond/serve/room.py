"""`Room`: what a stream asks of the place its bytes go to.

All that is on a token's way, from the engine's client to a protocol's connection, passes it on; it knows none of them.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable


@runtime_checkable
class Room(Protocol):
    """A place that may be full."""

    @property
    def is_full(self) -> bool:
        """True while nothing more should be put there."""
        ...

    async def drained(self) -> None:
        """Waits until it is not full. Several may wait at once, and each may give up."""
        ...

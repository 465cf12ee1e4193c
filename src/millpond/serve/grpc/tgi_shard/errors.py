"""What a shard's call can be refused for; the service gives each kind its gRPC status."""

from __future__ import annotations

from typing import Literal

ShardErrorKind = Literal["invalid", "not_found", "full", "unavailable", "failed"]


class ShardError(Exception):
    """A call that cannot be done.

    Args:
        kind: Which sort of error.
        text: What was wrong.
    """

    def __init__(self, kind: ShardErrorKind, text: str) -> None:
        super().__init__(text)
        self.kind = kind

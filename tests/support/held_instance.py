"""A backend whose one instance does nothing by itself: a test's own class holds what `begin` gives it, and ends it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Self

from millpond.serve.servables.backend import ExecutionTiming, Replies
from millpond.serve.servables.messages import InferRequest


class HeldInstance:
    """Backend and instance at once; a subclass has `begin`."""

    concurrency = 1
    name = "memory"

    async def complete(self, config: Any, folder: Any) -> Any:
        return config

    async def load(self, config: Any, folder: Any, group: Any, number: int) -> Self:
        return self

    async def execute(self, requests: Sequence[InferRequest], replies: Replies) -> ExecutionTiming:
        raise AssertionError("begin is there")

    async def cancel(self, request: InferRequest) -> None:
        return None

    async def restart(self) -> None:
        return None

    async def close(self) -> None:
        return None

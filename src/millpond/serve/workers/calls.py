"""`ServableCalls`: what a model in a worker may ask of the gateway that runs it.

Given to the back ends when they are made; the registry is made with the back ends, so whoever makes both closes the
circle. Knows no worker and no protocol.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from millpond.serve.servables.config import ServableConfig
from millpond.serve.servables.messages import InferRequest, InferResponse


class ServableCalls(Protocol):
    """The registry and the repository, as a model sees them. Every call may raise `ServableError`."""

    def stream(self, request: InferRequest) -> AsyncIterator[InferResponse]:
        """Runs a request on another servable; closing the iterator cancels it."""

    def describe(self, name: str, version: int | None) -> ServableConfig:
        """Returns how a servable looks from outside."""

    def is_ready(self, name: str, version: int | None) -> bool:
        """Whether requests to it can be answered now."""

    async def load(self, name: str, config: str | None, files: Mapping[str, bytes]) -> None:
        """Loads a model of the repository, with a configuration (JSON) and files that win over those in it."""

    async def unload(self, name: str) -> None:
        """Unloads a model of the repository."""

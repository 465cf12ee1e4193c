"""`RegistryCalls`: answers what models ask of the gateway, out of its registry and its repository.

Made before them, because back ends are made with it and the registry with the back ends; `connect` closes the circle.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

from millpond.serve.servables.config import ServableConfig
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.registry import Servables


class LoadingModels(Protocol):
    """The repository, as far as models may use it."""

    async def load(
        self, name: str, config_override: str | None = None, files: Mapping[str, bytes] | None = None
    ) -> None: ...

    async def unload(self, name: str, dependents: bool = False) -> None: ...


class RegistryCalls:
    """Implements `workers.calls.ServableCalls`."""

    def __init__(self) -> None:
        self._servables: Servables | None = None
        self._repository: LoadingModels | None = None

    def connect(self, servables: Servables, repository: LoadingModels | None = None) -> None:
        """Names who answers; models cannot load others without a repository."""
        self._servables, self._repository = servables, repository

    def stream(self, request: InferRequest) -> AsyncIterator[InferResponse]:
        """Runs a request on another servable."""
        return self._registry().stream(request)

    def describe(self, name: str, version: int | None) -> ServableConfig:
        """Returns how a servable looks from outside."""
        return self._registry().find(name, version).config

    def is_ready(self, name: str, version: int | None) -> bool:
        """Whether requests to it can be answered now."""
        try:
            return self._registry().find(name, version).state == "READY"
        except ServableError:
            return False

    async def load(self, name: str, config: str | None, files: Mapping[str, bytes]) -> None:
        """Loads a model of the repository."""
        await self._required().load(name, config, files)

    async def unload(self, name: str) -> None:
        """Unloads a model of the repository."""
        await self._required().unload(name)

    def _registry(self) -> Servables:
        if self._servables is None:
            raise ServableError("unavailable", "Other models cannot be called yet.")
        return self._servables

    def _required(self) -> LoadingModels:
        if self._repository is None:
            raise ServableError("unsupported", "There is no model repository to load from.")
        return self._repository

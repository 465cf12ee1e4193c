"""An API server, and an operator in front of it."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import kmock
import kubernetes_validate
import pytest
from kmock._internal import dsl

from millpond.jobs.clusters.kubernetes.client import KubernetesApi
from millpond.jobs.clusters.kubernetes.operator import Operator, OperatorSettings
from tests.integration.kubernetes.api_server import ApiServer, Object
from tests.integration.kubernetes.deployer import keep_deployments

_NAPS = 2000  # of 10 ms; counted, because a test's process may stand still for long


class Room:
    """One server and at most one operator at a time."""

    def __init__(self, server: ApiServer, url: str) -> None:
        self.server = server
        self.url = url
        self.operator: Operator | None = None
        self.api = KubernetesApi.at(url, first_wait_s=0.01)
        self._task: asyncio.Task[None] | None = None
        self._kubelet: asyncio.Task[None] | None = None

    async def start(self, settings: OperatorSettings | None = None, identity: str = "one") -> Operator:
        """Starts an operator."""
        self.operator = Operator(self.api, settings or OperatorSettings(), time.time, identity=identity)
        self._task = asyncio.create_task(self.operator.run())
        return self.operator

    async def stop(self) -> None:
        """Kills the operator wherever it is."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    def run_pods(self) -> None:
        """From now on bound pods run and deleted ones end."""
        self._kubelet = asyncio.create_task(self.server.kubelet())

    async def until(self, is_so: Callable[[], Any], what: str = "") -> Any:
        """Waits for something, and fails with the operator's own error when it died."""
        for _ in range(_NAPS):
            found = is_so()
            if found:
                return found
            if self._task is not None and self._task.done():
                self._task.result()
            await asyncio.sleep(0.01)
        raise AssertionError(f"never: {what or is_so}")

    async def settled(self) -> None:
        """Waits until the operator has had two more turns."""
        assert self.operator is not None
        turns = self.operator.turns
        self.operator.cluster.changed.set()
        await self.until(lambda: self._turned(turns + 1))
        self.operator.cluster.changed.set()
        await self.until(lambda: self._turned(turns + 2))

    def _turned(self, turns: int) -> bool:
        assert self.operator is not None
        return self.operator.turns >= turns

    def phase(self, plural: str, name: str) -> str:
        """The phase in a job's status."""
        found = self.server.find(plural, name)
        return "" if found is None else str(found.get("status", {}).get("phase", ""))

    def pods(self) -> dict[str, Object]:
        """Pods by name."""
        return {pod["metadata"]["name"]: pod for pod in self.server.all("pods")}

    async def phase_is(self, plural: str, name: str, phase: str) -> None:
        """Waits for a phase."""
        await self.until(lambda: self.phase(plural, name) == phase, f"{name} {phase}, but {self.phase(plural, name)}")

    async def close(self) -> None:
        """Ends everything."""
        await self.stop()
        if self._kubelet is not None:
            self._kubelet.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._kubelet
        self.server.is_closed = True  # aiohttp waits for handlers, and those of watches do not see that nobody listens
        await self.server.end_watches()
        await self.api.close()


_schema = functools.cache(kubernetes_validate.utils.schema_contents)


@pytest.fixture(autouse=True)
def quick_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schemas are read once; and kmock, which asks a rule about all requests there were, asks about the one alone."""
    monkeypatch.setattr(kubernetes_validate.utils, "schema_contents", _schema)

    def has(rule: dsl.Filter, request: object) -> bool:
        return bool(rule.criteria(request)) and request in rule._source

    def has_as_source(rule: dsl.Priority, request: object) -> bool:
        return request in rule._source

    def is_known(rule: dsl.Root, request: object) -> bool:
        return any(request is known for known in reversed(rule._requests))

    monkeypatch.setattr(dsl.Filter, "__contains__", has)
    monkeypatch.setattr(dsl.Priority, "__contains__", has_as_source)
    monkeypatch.setattr(dsl.Root, "__contains__", is_known)


@pytest.fixture
async def room() -> AsyncIterator[Room]:
    """An empty cluster."""
    async with ApiServer() as server, kmock.Server(server) as listening:
        found = Room(server, str(listening.url).rstrip("/"))
        yield found
        await found.close()


@pytest.fixture
async def pods(room: Room) -> AsyncIterator[None]:
    """From now on Deployments get their pods."""
    room.run_pods()
    task = asyncio.create_task(keep_deployments(room.server))
    yield
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task

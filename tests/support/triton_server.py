"""A server of the Open Inference Protocol over a model repository, in a thread with a loop of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from millpond.serve.backends.in_workers import make_worker_backends
from millpond.serve.backends.registry_calls import RegistryCalls
from millpond.serve.backends.worker_instance import WorkerSurroundings
from millpond.serve.kserve.ports import make_ports
from millpond.serve.kserve.server import KServe
from millpond.serve.kserve.settings import TritonSettings
from millpond.serve.ports import Port
from millpond.serve.repository.repository import ModelRepository
from millpond.serve.servables.backend import Backend
from millpond.serve.servables.limits import ServableLimits
from millpond.serve.servables.registry import Servables
from millpond.serve.workers.worker import WorkerLimits

T = TypeVar("T")
GOLDEN = Path(__file__).parents[1] / "golden" / "triton-2.51"


class TritonServer:
    """Serves until `close`.

    Args:
        models: The repository's folder.
        load: What is loaded at the start.
        settings: Of the ports; those left open get free ones.
        backends: Other back ends than worker processes.
        limits: Of the registry.
    """

    def __init__(
        self,
        models: Path,
        load: Sequence[str],
        settings: TritonSettings | None = None,
        *,
        backends: Mapping[str, Backend] | None = None,
        limits: ServableLimits | None = None,
    ) -> None:
        self._models = models
        self._load = load
        self._settings = replace(settings or TritonSettings(), http_port=0, grpc_port=0, metrics_port=0)
        self._more = dict(backends or {})
        self._limits = limits
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.ports: dict[str, Port] = {}
        self.run(self._open)

    def run(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Runs a coroutine on the server's loop."""
        return asyncio.run_coroutine_threadsafe(work(), self._loop).result(120)

    @property
    def http(self) -> str:
        return self.ports["Triton HTTP"].address

    @property
    def grpc(self) -> str:
        return self.ports["Triton gRPC"].address

    @property
    def metrics(self) -> str:
        return self.ports["Triton metrics"].address

    def close(self) -> None:
        """Stops everything."""
        self.run(self._close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self) -> None:
        calls = RegistryCalls()
        surroundings = WorkerSurroundings(WorkerLimits(), calls)
        self.servables = Servables({**make_worker_backends(surroundings), **self._more}, self._limits)
        self.repository = ModelRepository([self._models], self.servables, mode="explicit", startup=self._load)
        calls.connect(self.servables, self.repository)
        failures = await self.repository.start()
        assert failures == [], failures
        self.server = KServe(self.servables, self.repository, self._settings)
        for port in make_ports(self.server):
            await port.start()
            self.ports[port.name] = port

    async def _close(self) -> None:
        for port in self.ports.values():
            await port.stop()
        await self.repository.close()
        await self.servables.close()
        self.server.close()

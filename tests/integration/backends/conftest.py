"""A registry whose back ends start real worker processes, and models written into a folder of the test."""

from __future__ import annotations

import asyncio
import textwrap
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from millpond.serve.backends.in_workers import make_worker_backends
from millpond.serve.backends.registry_calls import RegistryCalls
from millpond.serve.backends.worker_instance import WorkerSurroundings
from millpond.serve.repository.triton_config import parse_config_text
from millpond.serve.servables.backend import ModelFolder
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.limits import ServableLimits
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.registry import Servables
from millpond.serve.servables.tensors import Tensor, datatype_of
from millpond.serve.workers import wire
from millpond.serve.workers.worker import WorkerLimits


@dataclass
class Bench:
    """A registry, a folder for models, and what those published."""

    folder: Path
    servables: Servables
    calls: RegistryCalls
    metrics: list[tuple[str, wire.MetricUpdate]] = field(default_factory=list)

    def write(self, name: str, config: str, source: str) -> ModelFolder:
        """Writes a Python model."""
        path = self.folder / name
        (path / "1").mkdir(parents=True)
        (path / "1" / "model.py").write_text(textwrap.dedent(source))
        (path / "config.pbtxt").write_text(config)
        return ModelFolder(path, 1)

    async def add(self, name: str, config: str, source: str) -> None:
        """Writes a Python model and loads it."""
        folder = self.write(name, config, source)
        await self.servables.add(parse_config_text(config, "config.pbtxt", name=name), folder)

    async def infer(self, model: str, inputs: Mapping[str, NDArray[np.generic]], **fields: object) -> InferResponse:
        """Sends one request and returns its only response."""
        return await self.servables.infer(request(model, inputs, **fields))

    async def first(self, model: str, inputs: Mapping[str, NDArray[np.generic]]) -> InferResponse:
        """Sends one request and returns its first response, an error included."""
        return await anext(aiter(self.servables.stream(request(model, inputs))))

    async def infer_when_up(self, model: str, inputs: Mapping[str, NDArray[np.generic]]) -> InferResponse:
        """Like `infer`, again and again while the servable is being started."""
        async with asyncio.timeout(60):
            while True:
                try:
                    return await self.infer(model, inputs)
                except ServableError as error:
                    if error.code != "unavailable":
                        raise
                await asyncio.sleep(0.01)


def request(model: str, inputs: Mapping[str, NDArray[np.generic]], **fields: object) -> InferRequest:
    """Returns a request with these arrays."""
    tensors = {name: Tensor(name, datatype_of(array), array) for name, array in inputs.items()}
    return InferRequest(model, tensors, **fields)  # type: ignore[arg-type]  # options of many types


MakeBench = Callable[[WorkerLimits], Bench]


@pytest.fixture
async def make_bench(tmp_path: Path) -> AsyncIterator[MakeBench]:
    made: list[Bench] = []

    def make(limits: WorkerLimits) -> Bench:
        calls = RegistryCalls()
        metrics: list[tuple[str, wire.MetricUpdate]] = []
        surroundings = WorkerSurroundings(limits, calls, lambda model, _, update: metrics.append((model, update)))
        servables = Servables(make_worker_backends(surroundings), ServableLimits(restart_first_s=0.01))
        calls.connect(servables)
        bench = Bench(tmp_path, servables, calls, metrics)
        made.append(bench)
        return bench

    yield make
    for bench in made:
        await bench.servables.close()


@pytest.fixture
async def bench(make_bench: MakeBench) -> Bench:
    return make_bench(WorkerLimits(exit_timeout_s=5.0, load_timeout_s=60.0))

"""A back end in this process: a servable's work is a Python function, and a test says when it runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

import numpy as np

from millpond.serve.servables.backend import ExecutionTiming, ModelFolder, Replies
from millpond.serve.servables.config import InstanceGroup, ServableConfig
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.tensors import Tensor, TensorSpec, datatype_of

Work = Callable[["MemoryInstance", Sequence[InferRequest], Replies], Awaitable[ExecutionTiming | None]]


class MemoryInstance:
    """Runs a function; remembers what it was asked."""

    def __init__(self, backend: MemoryBackend, config: ServableConfig, version: int, name: str) -> None:
        self.backend = backend
        self.config = config
        self.version = version
        self.name = name
        self.concurrency = backend.concurrency
        self.batches: list[list[InferRequest]] = []
        self.cancelled: list[InferRequest] = []
        self.num_restarts = 0
        self.num_open = 0
        self.most_open = 0
        self.is_closed = False

    async def execute(self, requests: Sequence[InferRequest], replies: Replies) -> ExecutionTiming:
        assert not self.is_closed, "executed after it was closed"
        self.batches.append(list(requests))
        self.num_open += 1
        self.most_open = max(self.most_open, self.num_open)
        try:
            return await self.backend.work(self, requests, replies) or ExecutionTiming(1, 2, 3)
        finally:
            self.num_open -= 1

    async def cancel(self, request: InferRequest) -> None:
        self.cancelled.append(request)

    async def restart(self) -> None:
        self.num_restarts += 1
        if self.backend.restart_failures:
            raise ServableError("unavailable", self.backend.restart_failures.pop(0))

    async def close(self) -> None:
        assert not self.is_closed, "closed twice"
        self.is_closed = True


class MemoryBackend:
    """Loads instances that run `work`."""

    def __init__(self, work: Work, *, name: str = "memory", concurrency: int = 1) -> None:
        self.name = name
        self.work = work
        self.concurrency = concurrency
        self.instances: list[MemoryInstance] = []
        self.broken: dict[str, str] = {}  # reasons by name
        self.load_failures: list[str] = []
        self.restart_failures: list[str] = []

    async def complete(self, config: ServableConfig, folder: ModelFolder) -> ServableConfig:
        return replace(config, platform=config.platform or self.name)

    async def load(
        self, config: ServableConfig, folder: ModelFolder, group: InstanceGroup, number: int
    ) -> MemoryInstance:
        await asyncio.sleep(0)
        if config.name in self.broken:
            raise ServableError("internal", self.broken[config.name])
        if self.load_failures:
            raise ServableError("internal", self.load_failures.pop(0))
        instance = MemoryInstance(self, config, folder.version, f"{group.name}_{number}")
        self.instances.append(instance)
        return instance


async def echo(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
    """Answers every request with its own inputs, input X as output X."""
    for index, request in enumerate(requests):
        replies.send(index, InferResponse(instance.config.name, instance.version, dict(request.inputs)))


def echo_config(name: str = "echo", *, dims: tuple[int, ...] = (-1,), datatype: str = "INT32") -> ServableConfig:
    """A servable with input X and output X, without a batch dimension."""
    spec = TensorSpec("X", datatype, dims)
    return ServableConfig(name, "memory", (spec,), (spec,))


def tensor(name: str, values: object, dtype: str = "int32") -> Tensor:
    """A tensor of the values."""
    array = np.asarray(values, dtype=dtype)
    return Tensor(name, datatype_of(array), array)


def request_of(model: str, values: object = (1,), **fields: object) -> InferRequest:
    """A request with input X."""
    return InferRequest(model, {"X": tensor("X", values)}, **fields)  # type: ignore[arg-type]

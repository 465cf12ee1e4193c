"""A back end inside the process whose servables have methods or stream: for tests of protocols over a real registry."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from millpond.serve.servables.backend import ExecutionTiming, ModelFolder, Replies
from millpond.serve.servables.config import InstanceGroup, MethodSpec, ServableConfig
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.tensors import Tensor, datatype_of

Method = Callable[..., Any]


class MethodBackend:
    """Runs plain functions as methods, an instance at a time.

    Args:
        methods: By name; parameters are inputs, a dict of arrays is the outputs.

    Attributes:
        batches: How many requests each execution had, by replica.
        deaths: So many executions die with "unavailable" before the next succeeds.
        gate: Executions wait for it when it is set.
    """

    name = "methods"

    def __init__(self, methods: dict[str, tuple[MethodSpec, Method]]) -> None:
        self.methods = methods
        self.batches: list[tuple[int, int]] = []
        self.deaths = 0
        self.gate: asyncio.Event | None = None

    async def complete(self, config: ServableConfig, folder: ModelFolder) -> ServableConfig:
        return replace(config, methods=tuple(spec for spec, _ in self.methods.values()))

    async def load(
        self, config: ServableConfig, folder: ModelFolder, group: InstanceGroup, number: int
    ) -> MethodInstance:
        return MethodInstance(self, config, folder.version, number)


class MethodInstance:
    """One replica."""

    concurrency = 1

    def __init__(self, backend: MethodBackend, config: ServableConfig, version: int, number: int) -> None:
        self._backend = backend
        self._name = config.name
        self._version = version
        self._number = number

    async def execute(self, requests: Sequence[InferRequest], replies: Replies) -> ExecutionTiming:
        backend = self._backend
        backend.batches.append((self._number, len(requests)))
        if backend.gate is not None:
            await backend.gate.wait()
        await asyncio.sleep(0)
        if backend.deaths:
            backend.deaths -= 1
            raise ServableError("unavailable", "the worker died")
        for index, request in enumerate(requests):
            spec, method = backend.methods[request.method]
            try:
                made = method(*[request.inputs[name].array for name in spec.inputs])
                outputs = {name: Tensor(name, datatype_of(array), array) for name, array in made.items()}
                replies.send(index, InferResponse(self._name, self._version, outputs))
            except ServableError as error:
                replies.send(index, InferResponse(self._name, self._version, error=error))
        return ExecutionTiming()

    async def cancel(self, request: InferRequest) -> None:
        return None

    async def restart(self) -> None:
        return None

    async def close(self) -> None:
        return None


class WordsBackend:
    """A decoupled servable: gives the words of its text one by one, waiting for `pace` between them.

    Attributes:
        num_cancelled: Requests that were cancelled while they ran.
        seen: The requests it got.
    """

    name = "words"

    def __init__(self) -> None:
        self.num_cancelled = 0
        self.seen: list[InferRequest] = []
        self.pace: asyncio.Event | None = None

    async def complete(self, config: ServableConfig, folder: ModelFolder) -> ServableConfig:
        return config

    async def load(
        self, config: ServableConfig, folder: ModelFolder, group: InstanceGroup, number: int
    ) -> WordsInstance:
        return WordsInstance(self)


class WordsInstance:
    """One replica."""

    concurrency = 8

    def __init__(self, backend: WordsBackend) -> None:
        self._backend = backend

    async def execute(self, requests: Sequence[InferRequest], replies: Replies) -> ExecutionTiming:
        for index, request in enumerate(requests):
            self._backend.seen.append(request)
            text = request.inputs["text_input"].array.reshape(-1)[0].decode()
            if text == "fail":
                raise ServableError("internal", "the model failed")
            for word in text.split():
                if self._backend.pace is not None:
                    await self._backend.pace.wait()
                if replies.cancelled(index):
                    break
                array = np.array([[word.encode() + b" "]], dtype=object)
                outputs = {"text_output": Tensor("text_output", "BYTES", array)}
                replies.send(index, InferResponse(request.model, 1, outputs, final=False))
                await asyncio.sleep(0)
            replies.send(index, InferResponse(request.model, 1, final=True))
        return ExecutionTiming()

    async def cancel(self, request: InferRequest) -> None:
        self._backend.num_cancelled += 1

    async def restart(self) -> None:
        return None

    async def close(self) -> None:
        return None

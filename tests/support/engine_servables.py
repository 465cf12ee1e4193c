"""Runs requests on an instance of a back end as the registry's batchers do, without a registry."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from millpond.serve.servables.backend import Instance
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.tensors import Tensor, datatype_of


class Collected:
    """The responses of one execution, by request."""

    def __init__(self, count: int) -> None:
        self.responses: list[list[InferResponse]] = [[] for _ in range(count)]

    def send(self, index: int, response: InferResponse) -> None:
        if not (self.responses[index] and self.responses[index][-1].final):
            self.responses[index].append(response)

    def cancelled(self, index: int) -> bool:
        return False


def tensor(name: str, values: object, datatype: str | None = None) -> Tensor:
    """A tensor; texts become BYTES."""
    array = np.asarray(values)
    if array.dtype.kind == "U":
        array = np.frompyfunc(lambda text: text.encode("utf-8"), 1, 1)(array)
        array = np.asarray(array, dtype=object)
    return Tensor(name, datatype or datatype_of(array), array)


def request(model: str = "m", parameters: dict[str, Any] | None = None, **inputs: Tensor | object) -> InferRequest:
    """A request whose inputs are given by name."""
    tensors = {name: value if isinstance(value, Tensor) else tensor(name, value) for name, value in inputs.items()}
    return InferRequest(model=model, inputs=tensors, parameters=parameters or {})


async def execute(instance: Instance, requests: Sequence[InferRequest]) -> list[list[InferResponse]]:
    """Runs requests as one batch; every one of them has ended."""
    collected = Collected(len(requests))
    await instance.execute(requests, collected)
    assert all(responses and responses[-1].final for responses in collected.responses)
    assert not any(response.final for responses in collected.responses for response in responses[:-1])
    return collected.responses


async def execute_one(instance: Instance, asked: InferRequest) -> list[InferResponse]:
    """Runs one request."""
    return (await execute(instance, [asked]))[0]

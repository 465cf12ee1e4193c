"""Infer requests that were read before: a client sends the same JSON with other raw tensors behind it.

What a JSON says is found out once for each path; after that a request is views of its body, and its answer, while the
outputs have the same shapes, the same head before other bytes. Only requests whose tensors are all raw numbers, in and
out, without ids, sequences, regions or classes, are kept so. `infer` asks and tells; a `Target` owns the plans.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from millpond.serve.servables.config import ServableConfig
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.tensors import NUMPY_TYPES, Tensor

if TYPE_CHECKING:
    from millpond.serve.http.kserve.infer_request import OutputWishes

_MAX_PLANS = 16
_MAX_JSON_BYTES = 2048
Shapes = tuple[tuple[str, str, tuple[int, ...]], ...]


@dataclass(frozen=True, slots=True)
class _Input:
    name: str
    datatype: str
    shape: tuple[int, ...]
    kind: np.dtype[np.generic]
    at: int


@dataclass(frozen=True, slots=True)
class KnownAnswer:
    """An answer's bytes up to the tensors, for one version and outputs of these names, datatypes and shapes."""

    config: ServableConfig
    version: int
    shapes: Shapes
    head: bytes


class InferPlan:
    """What one JSON asks for.

    Args:
        request: As it was read.
        wishes: How its outputs are wanted.
        json_bytes: The size of the JSON, behind which the tensors are.
    """

    __slots__ = ("_inputs", "_model", "_outputs", "_priority", "_timeout_us", "_version", "answer", "size", "wishes")

    def __init__(self, request: InferRequest, wishes: OutputWishes, json_bytes: int) -> None:
        inputs: list[_Input] = []
        at = json_bytes
        for tensor in request.inputs.values():
            array = tensor.array
            inputs.append(_Input(tensor.name, tensor.datatype, array.shape, NUMPY_TYPES[tensor.datatype], at))
            at += array.nbytes
        self.wishes = wishes
        self.size = at
        self.answer: KnownAnswer | None = None
        self._inputs = inputs
        self._model = request.model
        self._version = request.version
        self._outputs = request.outputs
        self._priority = request.priority
        self._timeout_us = request.timeout_us

    def request(self, body: bytes | memoryview) -> InferRequest:
        """Returns the request with the tensors of another body."""
        inputs = {
            spec.name: Tensor(spec.name, spec.datatype, np.ndarray(spec.shape, spec.kind, body, spec.at))
            for spec in self._inputs
        }
        return InferRequest(
            self._model, inputs, self._version, "", "", self._outputs, {}, self._priority, self._timeout_us
        )

    def head_for(self, config: ServableConfig, response: InferResponse) -> bytes | None:
        """Returns the known bytes before a response's tensors; None when it is another response than before."""
        known = self.answer
        if known is None or known.config is not config or known.version != response.version or response.parameters:
            return None
        return known.head if known.shapes == shapes_of(response) else None


class InferPlans:
    """The plans of one path, by their JSON."""

    def __init__(self) -> None:
        self._plans: dict[bytes, InferPlan] = {}

    def find(self, body: bytes | memoryview, json_bytes: int) -> InferPlan | None:
        """Returns the plan of a body that begins with so many bytes of JSON; None when it is to be read."""
        if json_bytes > _MAX_JSON_BYTES:
            return None
        plan = self._plans.get(bytes(body[:json_bytes]))
        return plan if plan is not None and plan.size == len(body) else None

    def keep(
        self, request: InferRequest, wishes: OutputWishes, body: bytes | memoryview, json_bytes: int
    ) -> InferPlan | None:
        """Remembers a request that was read, if it is of the plain kind, and returns its plan."""
        if json_bytes > _MAX_JSON_BYTES or request.request_id or request.parameters or request.sequence is not None:
            return None
        if not all(wish.is_raw for wish in (wishes.by_name or {"": wishes.default}).values()):
            return None
        if any(tensor.datatype == "BYTES" or not tensor.array.size for tensor in request.inputs.values()):
            return None
        plan = InferPlan(request, wishes, json_bytes)
        if plan.size != len(body):  # some of it is in JSON or in shared memory
            return None
        if len(self._plans) >= _MAX_PLANS:
            self._plans.clear()
        self._plans[bytes(body[:json_bytes])] = plan
        return plan


def shapes_of(response: InferResponse) -> Shapes:
    """Returns names, datatypes and shapes of a response's outputs."""
    return tuple([(tensor.name, tensor.datatype, tensor.array.shape) for tensor in response.outputs.values()])

"""Infer requests that were read before: the same words as then, with other raw tensors.

What does not change from request to request is found out once: after that a request is views of its bytes at known
places, and the answer's bytes before its tensors are those of the last answer whose outputs had the same shapes. Both
forms of the protocol keep such plans and know where in their messages the words end.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from millpond.serve.kserve.raw import Buffer, encode_raw
from millpond.serve.servables.config import ServableConfig
from millpond.serve.servables.messages import Alike, InferRequest, InferResponse
from millpond.serve.servables.tensors import NUMPY_TYPES, Tensor

MAX_WORDS = 2048  # bytes of a request beside its tensors; longer ones are read each time
_Input = tuple[str, str, tuple[int, ...], np.dtype[np.generic], int]  # name, datatype, shape, kind, place
_Output = tuple[str, str, tuple[int, ...], bytes]  # name, datatype, shape, what stands before its bytes


@dataclass(frozen=True, slots=True)
class _Answer:
    config: ServableConfig
    version: int
    head: bytes
    outputs: list[_Output]


class InferPlan:
    """A request without its tensors.

    Args:
        request: As it was read; `is_plain` of it.
        places: Where in a request's bytes each input begins.
        size: Of a request's bytes.
    """

    __slots__ = ("_alike", "_answer", "_inputs", "_outputs", "_priority", "_timeout_us", "model", "size", "version")

    def __init__(self, request: InferRequest, places: Sequence[int], size: int) -> None:
        self.model = request.model
        self.version = request.version
        self.size = size
        self._alike = Alike()
        self._inputs: list[_Input] = [
            (tensor.name, tensor.datatype, tensor.array.shape, NUMPY_TYPES[tensor.datatype], at)
            for tensor, at in zip(request.inputs.values(), places, strict=True)
        ]
        self._outputs = request.outputs
        self._priority = request.priority
        self._timeout_us = request.timeout_us
        self._answer: _Answer | None = None

    @property
    def first_place(self) -> int:
        """Where the first tensor begins."""
        return self._inputs[0][4] if self._inputs else 0

    def request(self, data: Buffer) -> InferRequest:
        """Returns the request with the tensors in other bytes."""
        inputs = {}
        for name, datatype, shape, kind, at in self._inputs:  # a comprehension would be one more call
            inputs[name] = Tensor(name, datatype, np.ndarray(shape, kind, data, at))
        return InferRequest(
            self.model,
            inputs,
            self.version,
            "",
            "",
            self._outputs,
            {},
            self._priority,
            self._timeout_us,
            None,
            0,
            None,
            self._alike,
        )

    def answer(self, config: ServableConfig, response: InferResponse) -> list[Buffer] | None:
        """Returns an answer's bytes in parts; None when it is another than the last one."""
        known, outputs = self._answer, response.outputs
        if known is None or known.config is not config or known.version != response.version or response.parameters:
            return None
        if len(outputs) != len(known.outputs):
            return None
        parts: list[Buffer] = [known.head]
        for (name, datatype, shape, before), tensor in zip(known.outputs, outputs.values(), strict=True):
            array = tensor.array
            if array.shape != shape or tensor.name != name or tensor.datatype != datatype:
                return None
            if before:
                parts.append(before)
            parts.append(encode_raw(datatype, array))
        return parts

    def learn_answer(
        self, config: ServableConfig, response: InferResponse, head: bytes, before: Sequence[bytes] = ()
    ) -> None:
        """Remembers an answer's bytes beside its tensors, unless those have lengths of their own.

        Args:
            config: Of the servable that gave it.
            response: The answer.
            head: Its first bytes.
            before: What stands before each tensor, where that is anything.
        """
        tensors = response.outputs.values()
        if response.parameters or any(tensor.datatype == "BYTES" for tensor in tensors):
            return
        outputs = [
            (tensor.name, tensor.datatype, tensor.array.shape, between)
            for tensor, between in zip(tensors, before or [b""] * len(tensors), strict=True)
        ]
        self._answer = _Answer(config, response.version, head, outputs)


def is_plain(request: InferRequest) -> bool:
    """Whether a request has only what a plan can repeat: numbers, and nothing that is its own."""
    if request.request_id or request.parameters or request.sequence is not None:
        return False
    return all(tensor.datatype != "BYTES" and tensor.array.size for tensor in request.inputs.values())

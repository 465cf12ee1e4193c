"""`InferenceRequest`: a request that the model is to answer, or one that it makes to another model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from millpond.compat.triton_python_backend_utils.connection import CONNECTION
from millpond.compat.triton_python_backend_utils.errors import TritonError, TritonModelException
from millpond.compat.triton_python_backend_utils.responses import (
    InferenceResponse,
    InferenceResponseSender,
    OpenRequest,
    ResponseIterator,
)
from millpond.compat.triton_python_backend_utils.tensors import Tensor
from millpond.serve.servables.messages import Parameter
from millpond.serve.workers import wire
from millpond.serve.workers.execution import Execution
from millpond.serve.workers.host import CallResponse, parameters_of

TRITONSERVER_REQUEST_FLAG_SEQUENCE_START = wire.FLAG_SEQUENCE_START
TRITONSERVER_REQUEST_FLAG_SEQUENCE_END = wire.FLAG_SEQUENCE_END
TRITONSERVER_REQUEST_RELEASE_ALL = 1
TRITONSERVER_REQUEST_RELEASE_RESCHEDULE = 2
TRITONSERVER_MEMORY_CPU = 0
TRITONSERVER_MEMORY_CPU_PINNED = 1
TRITONSERVER_MEMORY_GPU = 2


@dataclass(frozen=True, slots=True)
class PreferredMemory:
    """Where a caller would like the outputs; they are in main memory whatever it says."""

    memory_type: int = TRITONSERVER_MEMORY_CPU
    memory_type_id: int = 0


class InferenceTrace:
    """The trace of a request, to be passed on to calls it causes."""

    def get_context(self) -> str | None:
        """Returns the context of a distributed trace; there is none."""
        return None


class InferenceRequest:
    """A request. A model makes one to call another model; those that it gets have the same face.

    Args:
        request_id: For logs.
        correlation_id: The sequence's, 0 or "" for none.
        inputs: The tensors.
        requested_output_names: Which outputs to return; an empty list means all.
        model_name: Which model to call.
        model_version: -1 is the newest.
        flags: `TRITONSERVER_REQUEST_FLAG_SEQUENCE_START`, `..._END`, both or none.
        timeout: Microseconds in the called model's queue.
        preferred_memory: Accepted, not used.
        trace: Accepted, not used.
        parameters: Values are bool, int, float or str.
    """

    def __init__(
        self,
        request_id: str = "",
        correlation_id: int | str = 0,
        inputs: Sequence[Tensor] = (),
        requested_output_names: Iterable[str] = (),
        model_name: str = "",
        *,
        model_version: int = -1,
        flags: int = 0,
        timeout: int = 0,
        preferred_memory: PreferredMemory | None = None,
        trace: InferenceTrace | None = None,
        parameters: dict[str, Parameter] | None = None,
    ) -> None:
        for tensor in inputs:
            if not isinstance(tensor, Tensor):
                raise TritonModelException(f"inputs must hold Tensor objects, not {type(tensor).__name__}")
        self._execution: Execution | None = None
        self._index = 0
        self._open: OpenRequest | None = None
        self._inputs: list[Tensor] | None = list(inputs)
        self._outputs = list(requested_output_names)
        self._preferred_memory = preferred_memory or PreferredMemory()
        try:
            checked = parameters_of(parameters)
        except ValueError as error:
            raise TritonModelException(str(error)) from None
        self._wire = wire.RequestWire(
            model_name,
            [],
            request_id,
            tuple(self._outputs) or None,
            checked,
            correlation_id or 0,
            flags,
            timeout,
            0,
            model_version,
        )

    @classmethod
    def incoming(
        cls, execution: Execution, index: int, all_outputs: list[str], *, is_decoupled: bool
    ) -> InferenceRequest:
        """Returns the face of a request of a batch; one of a decoupled model ends with the last of its faces."""
        made = cls.__new__(cls)
        made._execution, made._index = execution, index
        made._open = OpenRequest(execution, index) if is_decoupled else None
        made._wire = wire_request = execution.requests[index]
        made._inputs = None
        made._outputs = all_outputs if wire_request.outputs is None else list(wire_request.outputs)
        return made

    def inputs(self) -> list[Tensor]:
        """Returns the tensors."""
        if self._inputs is None:
            assert self._execution is not None
            self._inputs = [Tensor.wrap(tensor) for tensor in self._execution.inputs(self._index)]
        return self._inputs

    def request_id(self) -> str:
        """Returns the client's id, or ""."""
        return self._wire.request_id

    def correlation_id(self) -> int | str:
        """Returns the sequence's id, 0 when the request belongs to none."""
        return self._wire.key

    def requested_output_names(self) -> list[str]:
        """Returns the outputs that are wanted."""
        return list(self._outputs)

    def parameters(self) -> str:
        """Returns the parameters as JSON."""
        return json.dumps(self._wire.parameters, separators=(",", ":"), ensure_ascii=False)

    def flags(self) -> int:
        """Returns the sequence flags."""
        return self._wire.flags

    def set_flags(self, flags: int) -> None:
        """Sets the sequence flags of a request to be made."""
        values = {name: getattr(self._wire, name) for name in self._wire.__struct_fields__}
        self._wire = wire.RequestWire(**{**values, "flags": flags})

    def timeout(self) -> int:
        """Returns the time it may wait in a queue, microseconds."""
        return self._wire.timeout_us

    def preferred_memory(self) -> PreferredMemory:
        """Returns what was asked for."""
        return self._preferred_memory

    def trace(self) -> InferenceTrace:
        """Returns the request's trace."""
        return InferenceTrace()

    def set_release_flags(self, flags: int) -> None:
        """Says what becomes of the request when `execute` returns: it ends, or is executed once more."""
        if flags & TRITONSERVER_REQUEST_RELEASE_RESCHEDULE:
            request = self._incoming()
            request.execution.reschedule(request.index)

    def get_response_sender(self) -> InferenceResponseSender:
        """Returns what sends the responses of a decoupled model."""
        return InferenceResponseSender(self._incoming())

    def is_cancelled(self) -> bool:
        """Whether nobody waits for the request any more."""
        request = self._incoming()
        return request.execution.is_cancelled(request.index)

    def exec(self, decoupled: bool = False) -> InferenceResponse | ResponseIterator:
        """Runs the request on its model; what goes wrong there is the response's error."""
        tensors = [tensor.unwrapped for tensor in self.inputs()]
        responses = CONNECTION.host.call(self._wire, tensors)
        if decoupled:
            return ResponseIterator(responses)
        try:
            return _only_response(responses, self._wire.model)
        finally:
            responses.close()

    def async_exec(self, decoupled: bool = False) -> asyncio.Future[Any]:
        """Like `exec`, to be awaited; other tasks of the model run meanwhile."""
        return asyncio.get_running_loop().run_in_executor(None, self.exec, decoupled)

    def _incoming(self) -> OpenRequest:
        if self._execution is None:
            raise TritonModelException("this is only possible for a request that the model was given to execute")
        if self._open is None:
            self._open = OpenRequest(self._execution, self._index)
        return self._open


def _only_response(responses: Iterable[CallResponse], model: str) -> InferenceResponse:
    for response in responses:
        if response.final or response.error is not None:
            return InferenceResponse.of_call(response)
        break
    text = (
        f"Model {model} is using the decoupled. The current BLS request call doesn't support models using the "
        "decoupled transaction policy. Please use 'decoupled=True' argument to the 'exec' or 'async_exec' calls "
        "for decoupled models.'"
    )
    return InferenceResponse(error=TritonError(text))

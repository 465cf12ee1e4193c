"""`InferenceResponse`, the sender of decoupled models, and the responses of calls of other models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from millpond.compat.triton_python_backend_utils.errors import (
    TritonError,
    TritonModelException,
    code_name,
    code_number,
)
from millpond.compat.triton_python_backend_utils.tensors import Tensor
from millpond.serve.servables.messages import Parameter
from millpond.serve.workers import wire
from millpond.serve.workers.execution import Execution
from millpond.serve.workers.host import CallResponse, parameters_of

TRITONSERVER_RESPONSE_COMPLETE_FINAL = 1


class InferenceResponse:
    """What a model answers to one request.

    Args:
        output_tensors: May be empty when there is an error.
        error: Why there are no outputs.
        parameters: Sent along with the outputs; values are bool, int or str.
    """

    __slots__ = ("_error", "_parameters", "_tensors")

    def __init__(
        self,
        output_tensors: Sequence[Tensor] = (),
        error: TritonError | None = None,
        parameters: dict[str, Parameter] | None = None,
    ) -> None:
        for tensor in output_tensors:
            if not isinstance(tensor, Tensor):
                raise TritonModelException(f"output_tensors must hold Tensor objects, not {type(tensor).__name__}")
        self._tensors = list(output_tensors)
        self._error = error
        self._parameters: dict[str, Parameter] = {}
        if parameters:
            try:
                self._parameters = parameters_of(parameters)
            except ValueError as wrong:
                raise TritonModelException(str(wrong)) from None

    def output_tensors(self) -> list[Tensor]:
        """Returns the outputs."""
        return self._tensors

    def has_error(self) -> bool:
        """Whether this is an error instead of outputs."""
        return self._error is not None

    def error(self) -> TritonError | None:
        """Returns the error, None when there is none."""
        return self._error

    def parameters(self) -> str:
        """Returns the parameters as JSON."""
        import json

        return json.dumps(self._parameters, separators=(",", ":"))

    def put(self, execution: Execution, index: int, *, final: bool) -> None:
        """Hands the response to the batch its request is in."""
        error = None
        if self._error is not None:
            error = wire.ErrorWire(code_name(self._error.code()), self._error.message())
        outputs = [tensor.unwrapped for tensor in self._tensors] if error is None else []
        execution.respond(index, outputs, parameters=self._parameters, error=error, final=final)

    @classmethod
    def of_call(cls, response: CallResponse) -> InferenceResponse:
        """Returns the response of a called servable."""
        error = None
        if response.error is not None:
            error = TritonError(response.error.message, code_number(response.error.code))
        return cls([Tensor.wrap(tensor) for tensor in response.outputs], error, response.parameters)


class OpenRequest:
    """A request's place in its batch, shared by its faces; the last of them to go ends the request."""

    __slots__ = ("execution", "index")

    def __init__(self, execution: Execution, index: int) -> None:
        self.execution = execution
        self.index = index

    def __del__(self) -> None:
        if self.execution.is_open(self.index):
            text = "The model dropped the request without a final response."
            self.execution.respond(self.index, error=wire.ErrorWire("internal", text))
            self.execution.flush()


class InferenceResponseSender:
    """Sends any number of responses to one request, from any thread."""

    __slots__ = ("_request",)

    def __init__(self, request: OpenRequest) -> None:
        self._request = request

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        """Sends a response, ends the request, or both.

        Raises:
            TritonModelException: The request has ended, or there is nothing to send.
        """
        if flags not in (0, TRITONSERVER_RESPONSE_COMPLETE_FINAL):
            raise TritonModelException("Unable to send response. Unsupported flag provided.")
        if response is None and not flags:
            raise TritonModelException(
                "Inference Response object must be provided when the response flags is set to zero."
            )
        execution, index = self._request.execution, self._request.index
        if not execution.is_open(index):
            raise TritonModelException("Unable to send response. Response sender has been closed.")
        final = flags == TRITONSERVER_RESPONSE_COMPLETE_FINAL
        if response is None:
            execution.respond(index, final=True)
        elif isinstance(response, InferenceResponse):
            response.put(execution, index, final=final)
        else:
            raise TritonModelException(f"an InferenceResponse can be sent, not {type(response).__name__}")
        execution.flush()

    def is_cancelled(self) -> bool:
        """Whether nobody waits for the request any more."""
        return self._request.execution.is_cancelled(self._request.index)


class ResponseIterator:
    """The responses of a call with `decoupled=True`; an empty last response that only ends the stream is shown too."""

    def __init__(self, responses: Iterator[CallResponse]) -> None:
        self._responses = responses

    def __iter__(self) -> ResponseIterator:
        return self

    def __next__(self) -> InferenceResponse:
        return InferenceResponse.of_call(next(self._responses))

    def cancel(self) -> None:
        """Tells the called model that nobody waits any more."""
        close: Any = getattr(self._responses, "close", None)
        if close is not None:
            close()

"""Runs a graph of arrays: named arrays in, named arrays out, one batch at a time.

`onnx_model` and `torch_model` load the graph. A graph that says what its tensors are lets the gateway complete the
configuration.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.tensors import Tensor
from millpond.serve.workers.execution import Execution

TensorInfo = tuple[str, str, list[int]]
"""Name, datatype and dims of a tensor; -1 is any size."""


class Graph(Protocol):
    """A loaded model file. What the file does not say is None."""

    inputs: list[TensorInfo] | None
    outputs: list[TensorInfo] | None

    def run(self, tensors: Mapping[str, Tensor], wanted: list[str] | None) -> list[Tensor]:
        """Returns the wanted outputs, or all."""


class ArrayModel:
    """The runner of a graph."""

    def __init__(self, graph: Graph, name: str) -> None:
        self._graph = graph
        self._name = name

    def info(self) -> dict[str, Any]:
        """Returns what the file says of its tensors."""
        return {"inputs": self._graph.inputs, "outputs": self._graph.outputs}

    def execute(self, execution: Execution) -> None:
        """Runs every request of the batch; the gateway sends one."""
        for index, request in enumerate(execution.requests):
            tensors = {tensor.name: tensor for tensor in execution.inputs(index)}
            try:
                outputs = self._graph.run(tensors, None if request.outputs is None else list(request.outputs))
            except ServableError:
                raise
            except Exception as error:
                text = f"Model '{self._name}' failed: {type(error).__name__}: {error}"
                raise ServableError("internal", text) from error
            execution.respond(index, outputs)
            del tensors, outputs
        execution.finish()

    def close(self) -> None:
        """Has nothing to free that the process's end does not."""

"""`Reshapes`: tensors whose shape for the model is another than for clients (`reshape` in a configuration)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from millpond.serve.servables.config import ServableConfig
from millpond.serve.servables.tensors import Tensor, TensorSpec


class Reshapes:
    """Turns inputs to the model's shapes and outputs to the clients'.

    Args:
        plain: What `plain_reshapes` made.
    """

    def __init__(self, plain: Mapping[str, Any]) -> None:
        self._first = int(plain["has_batch"])
        self._inputs: dict[str, list[list[int]]] = plain["inputs"]
        self._outputs: dict[str, list[list[int]]] = plain["outputs"]

    def of_inputs(self, tensors: list[Tensor]) -> list[Tensor]:
        """Returns inputs as the model takes them."""
        return [self._apply(tensor, self._inputs) for tensor in tensors]

    def of_outputs(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """Returns outputs as clients get them; one that is not of the model's shape stays as it is."""
        return [self._apply(tensor, self._outputs) for tensor in tensors]

    def _apply(self, tensor: Tensor, known: Mapping[str, list[list[int]]]) -> Tensor:
        if tensor.name not in known:
            return tensor
        dims, target = known[tensor.name]
        shape = tensor.array.shape
        own = shape[self._first :]
        if len(own) != len(dims) or any(want not in (-1, have) for want, have in zip(dims, own, strict=True)):
            return tensor
        free = iter([have for want, have in zip(dims, own, strict=True) if want == -1])
        sizes = (next(free) if size == -1 else size for size in target)
        return Tensor(tensor.name, tensor.datatype, tensor.array.reshape((*shape[: self._first], *sizes)))


def plain_reshapes(config: ServableConfig) -> dict[str, Any] | None:
    """Returns a configuration's reshapes for the message to a worker, None when it has none."""

    def pairs(specs: tuple[TensorSpec, ...], *, to_model: bool) -> dict[str, list[list[int]]]:
        found = {}
        for spec in specs:
            if spec.reshape is not None:
                there_and_back = [list(spec.dims), list(spec.reshape)]
                found[spec.name] = there_and_back if to_model else there_and_back[::-1]
        return found

    inputs, outputs = pairs(config.inputs, to_model=True), pairs(config.outputs, to_model=False)
    return {"has_batch": config.max_batch_size > 0, "inputs": inputs, "outputs": outputs} if inputs or outputs else None

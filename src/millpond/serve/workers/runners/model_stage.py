"""`ModelCaller`: a stage that is another servable: instances of the same shape are stacked and sent as one request.

The gateway's own batching puts requests of several workers together. Several requests of a stage are under way at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from millpond.serve.backends.stage_graph import ModelStage
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.tensors import Tensor, TensorSpec, datatype_of
from millpond.serve.workers.host import Host, request_wire
from millpond.serve.workers.runners.instance_values import to_array

MAX_CALLS_UNDER_WAY = 8
Instance = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class _Target:
    """How the called servable looks."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    max_batch_size: int


class ModelCaller:
    """Calls servables for stages.

    Args:
        host: The way to the gateway.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self._pool: ThreadPoolExecutor | None = None

    def run(self, stage: ModelStage, instances: Sequence[Instance]) -> list[Any]:
        """Returns every instance's tuple of outputs, or a `ServableError`."""
        try:
            target = self._target(stage)
        except ServableError as error:
            return [error] * len(instances)
        results: list[Any] = [None] * len(instances)
        groups: dict[tuple[Any, ...], list[int]] = {}
        arrays: dict[int, list[Any]] = {}
        for index, instance in enumerate(instances):
            try:
                arrays[index] = [to_array(value, spec) for value, spec in zip(instance, target.inputs, strict=True)]
            except ServableError as error:
                results[index] = error
            else:
                groups.setdefault(tuple(array.shape for array in arrays[index]), []).append(index)
        size = max(target.max_batch_size, 1)
        chunks = [group[at : at + size] for group in groups.values() for at in range(0, len(group), size)]

        def call(chunk: list[int]) -> list[Any]:
            return self._call(stage, target, [arrays[index] for index in chunk])

        for chunk, answers in zip(chunks, self._all(call, chunks), strict=True):
            for index, answer in zip(chunk, answers, strict=True):
                results[index] = answer
        return results

    def _all(self, call: Any, chunks: list[list[int]]) -> list[list[Any]]:
        if len(chunks) <= 1:
            return [call(chunk) for chunk in chunks]
        if self._pool is None:
            self._pool = ThreadPoolExecutor(MAX_CALLS_UNDER_WAY, "model-stage")
        return list(self._pool.map(call, chunks))

    def _call(self, stage: ModelStage, target: _Target, rows: list[list[Any]]) -> list[Any]:
        tensors = []
        for number, spec in enumerate(target.inputs):
            columns = [row[number] for row in rows]
            is_stacked = target.max_batch_size > 0 and number not in stage.unbatched
            array = np.stack(columns) if is_stacked else columns[0]
            tensors.append(Tensor(spec.name, spec.datatype or datatype_of(array), array))
        request = request_wire(
            stage.model,
            outputs=tuple(target.outputs),
            version=-1 if stage.version is None else stage.version,
            method=stage.method,
        )
        responses = self._host.call(request, tensors)
        try:
            response = next(responses)
        finally:
            responses.close()
        if response.error is not None:
            error = ServableError(response.error.code, f"Model '{stage.model}': {response.error.message}")
            return [error] * len(rows)
        by_name = {tensor.name: tensor.array for tensor in response.outputs}
        missing = [name for name in target.outputs if name not in by_name]
        if missing:
            return [ServableError("internal", f"Model '{stage.model}' gave no output '{missing[0]}'.")] * len(rows)
        outputs = [by_name[name] for name in target.outputs]
        if target.max_batch_size == 0:
            return [tuple(outputs)]
        if any(len(array) != len(rows) for array in outputs):
            return [ServableError("internal", f"Model '{stage.model}' changed the batch size.")] * len(rows)
        return [tuple(array[row] for array in outputs) for row in range(len(rows))]

    def _target(self, stage: ModelStage) -> _Target:
        # Asked every time: the servable may have been replaced by one that looks different.
        seen = self._host.ask("describe", {"name": stage.model, "version": stage.version})
        specs = {name: TensorSpec(name, kind, (-1,) * len(dims)) for name, kind, dims, _ in seen["inputs"]}
        outputs = [name for name, *_ in seen["outputs"]]
        max_batch_size = seen["max_batch_size"]
        names = [name for name, _, _, optional in seen["inputs"] if not optional]
        if stage.method:
            if stage.method not in seen["methods"]:
                raise ServableError("not_found", f"Model '{stage.model}' has no method '{stage.method}'.")
            names, outputs = seen["methods"][stage.method]
            specs = {name: TensorSpec(name, "", ()) for name in names}
            max_batch_size = 0
        names = list(stage.inputs) or names
        if len(names) != len(stage.arguments) or any(name not in specs for name in names):
            raise ServableError(
                "internal",
                f"Model '{stage.model}' takes {len(specs)} inputs ({', '.join(specs)}); "
                f"the stage gives it {len(stage.arguments)}.",
            )
        wanted = list(stage.output_names) or outputs[: stage.outputs]
        if len(wanted) != stage.outputs:
            raise ServableError("internal", f"Model '{stage.model}' has only {len(outputs)} outputs.")
        return _Target(tuple(specs[name] for name in names), tuple(wanted), max_batch_size)

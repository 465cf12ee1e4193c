"""`LoadedModel`: a declared model that runs instances: batches of them, padded to a fixed batch, results split.

An instance that does not fit fails alone; instances of different shapes run apart. Called as a stage and by
`Model.call`. Runs in the worker; knows no files.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from millpond.compat.mindspore_serving.server.register.recording import DeclaredModel
from millpond.compat.mindspore_serving.server.worker.functions import Instances, to_array
from millpond.compat.mindspore_serving.server.worker.graphs import ArrayInfo, Graph
from millpond.serve.mindspore.values import name_of_dtype
from millpond.serve.servables.errors import ServableError

MAX_FREE_BATCH = 64  # instances of one run of a model whose batch dimension is free


class LoadedModel:
    """A model with its graphs.

    Args:
        declared: What the servable's file said.
        graphs: One a subgraph.

    Raises:
        RuntimeError: A method uses it with other numbers of inputs or outputs, or it has no batch dimension.
    """

    def __init__(self, declared: DeclaredModel, graphs: Sequence[Graph]) -> None:
        self._declared = declared
        self._graphs = list(graphs)
        for subgraph, (num_inputs, num_outputs) in declared.counts.items():
            graph = self._graphs[subgraph]
            for word, used, real in (
                ("inputs", num_inputs, len(graph.inputs)),
                ("outputs", num_outputs, graph.num_outputs),
            ):
                if real is not None and used != real:
                    raise RuntimeError(
                        f"The {word} count {used} in register_method not equal to the count {real} defined in model, "
                        f"model info: {declared.key}, subgraph: {subgraph}"
                    )
        self._batches = [self._fixed_batch(graph) for graph in self._graphs]

    @property
    def batch_size(self) -> int:
        """Most instances of one run of the first graph."""
        return self._limit(0)

    def run_stage(self, instances: Instances) -> list[Any]:
        """Returns each instance's output, tuple of outputs or exception."""
        results = self.run(instances, 0)
        return [
            result if isinstance(result, Exception) else result[0] if len(result) == 1 else result
            for result in results
        ]

    def call(self, instances: Instances, subgraph: int) -> tuple[tuple[Any, ...], ...]:
        """Returns each instance's outputs.

        Raises:
            RuntimeError: An instance failed.
        """
        if subgraph >= len(self._graphs):
            raise RuntimeError(
                f"The model does not have subgraph of index {subgraph}, the subgraph count of the model is "
                f"{len(self._graphs)}"
            )
        for index, instance in enumerate(instances):
            self._check_count(instance, subgraph, index)
        outputs: list[tuple[Any, ...]] = []
        for result in self.run([tuple(to_array(item) for item in instance) for instance in instances], subgraph):
            if isinstance(result, ServableError):
                raise RuntimeError(result.message)
            outputs.append(result)
        return tuple(outputs)

    def run(self, instances: Instances, subgraph: int) -> list[Any]:
        """Returns each instance's tuple of outputs, or a `ServableError`."""
        results: list[Any] = [None] * len(instances)
        groups: dict[Any, list[int]] = {}
        fitted: list[tuple[Any, ...]] = [()] * len(instances)
        for index, instance in enumerate(instances):
            try:
                fitted[index] = self._fit(instance, subgraph)
            except ServableError as error:
                results[index] = error
                continue
            form = tuple((array.shape, array.dtype.str) for array in fitted[index])
            groups.setdefault(form, []).append(index)
        limit = self._limit(subgraph)
        for indexes in groups.values():
            for start in range(0, len(indexes), limit):
                part = indexes[start : start + limit]
                for index, result in zip(part, self._run_batch([fitted[i] for i in part], subgraph), strict=True):
                    results[index] = result
        return results

    def _limit(self, subgraph: int) -> int:
        return (self._batches[subgraph] or MAX_FREE_BATCH) if self._declared.with_batch_dim else 1

    def _fixed_batch(self, graph: Graph) -> int:
        """Returns the batch dimension of a graph's inputs; 0 when it is free."""
        if not self._declared.with_batch_dim:
            return 1
        sizes = set()
        for index, info in enumerate(graph.inputs):
            if index in self._declared.without_batch_dim_inputs or info.shape is None:
                continue
            if not info.shape:
                raise RuntimeError(f"Input {index} of model {self._declared.key} has no batch dimension")
            sizes.add(info.shape[0])
        if len(sizes) > 1:
            raise RuntimeError(f"Servable batch size of model {self._declared.key} is not the same in all inputs")
        return max(0, sizes.pop()) if sizes else 0

    def _check_count(self, instance: Sequence[Any], subgraph: int, index: int) -> None:
        expected = len(self._graphs[subgraph].inputs)
        if len(instance) != expected:
            raise RuntimeError(
                f"The inputs count {len(instance)} of instance {index} is not equal to the inputs count {expected} "
                f"of the model"
            )

    def _has_batch(self, index: int) -> bool:
        return self._declared.with_batch_dim and index not in self._declared.without_batch_dim_inputs

    def _fit(self, instance: tuple[Any, ...], subgraph: int) -> tuple[Any, ...]:
        infos = self._graphs[subgraph].inputs
        return tuple(
            _fit_array(np.asarray(array), info, index, self._has_batch(index))
            for index, (array, info) in enumerate(zip(instance, infos, strict=True))
        )

    def _run_batch(self, instances: list[tuple[Any, ...]], subgraph: int) -> list[Any]:
        if not self._declared.with_batch_dim:
            return [self._run_graph(list(instance), subgraph) for instance in instances]
        size = self._batches[subgraph] or len(instances)
        padded = instances + [instances[0]] * (size - len(instances))
        arrays = [
            np.stack([instance[index] for instance in padded]) if self._has_batch(index) else instances[0][index]
            for index in range(len(instances[0]))
        ]
        outputs = self._run_graph(arrays, subgraph)
        if isinstance(outputs, ServableError):
            return [outputs] * len(instances)
        for index, output in enumerate(outputs):
            if output.ndim == 0 or output.shape[0] != size:
                return [
                    _refuse(
                        f"Output {index} of model {self._declared.key} has shape {list(output.shape)}, its first "
                        f"dimension is not the batch of {size}; declare the model with with_batch_dim=False"
                    )
                ] * len(instances)
        return [tuple(output[row] for output in outputs) for row in range(len(instances))]

    def _run_graph(self, arrays: list[Any], subgraph: int) -> Any:
        try:
            outputs = self._graphs[subgraph].run(arrays)
        except Exception as error:
            return ServableError("internal", f"Model {self._declared.key} failed: {error}")
        return tuple(np.asarray(output) for output in outputs)


def _fit_array(array: Any, info: ArrayInfo, index: int, has_batch: bool) -> Any:
    """Returns the array in the shape the graph wants; like the original only the size must fit a fixed shape."""
    if info.dtype is not None and array.dtype != info.dtype:
        raise _refuse(
            f"Given model input {index} data type {name_of_dtype(array.dtype)} not match the data type "
            f"{name_of_dtype(info.dtype)} defined in model"
        )
    if array.dtype == object:
        raise _refuse(f"Given model input {index} is a string or bytes, models take numbers")
    if info.shape is None:
        return array
    shape = info.shape[1:] if has_batch else info.shape
    if -1 not in shape:
        if math.prod(shape) != array.size:
            size, expected = array.nbytes, math.prod(shape) * array.itemsize
            raise _refuse(f"Given model input {index} size {size} not match the size {expected} defined in model")
        return array.reshape(shape)
    if len(shape) != array.ndim or any(want not in (-1, have) for want, have in zip(shape, array.shape, strict=False)):
        raise _refuse(
            f"Given model input {index} shape {list(array.shape)} not match the shape {list(shape)} defined in model"
        )
    return array


def _refuse(message: str) -> ServableError:
    return ServableError("invalid_argument", message)

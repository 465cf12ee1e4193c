"""One batch's tensors out of many requests', and back: for back ends that compute on whole batches.

Requests that a scheduler put into one execution have equal shapes wherever shapes must be equal. Ragged inputs are
flattened and joined; the tensors that tell a model where each request's part is (`batch_inputs`) are made here too.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from millpond.serve.servables.config import BatchTensor, ServableConfig
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest
from millpond.serve.servables.tensors import NUMPY_TYPES, Tensor

Array = NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class Merged:
    """The inputs of one batch.

    Attributes:
        inputs: As the model takes them.
        rows: Of each request, in order.
    """

    inputs: dict[str, Tensor]
    rows: tuple[int, ...]


def merge(config: ServableConfig, requests: Sequence[InferRequest]) -> Merged:
    """Joins the requests of one execution. A single request's arrays are not copied.

    Raises:
        ServableError: They cannot be joined, which is a bug of whoever made the batch.
    """
    rows = tuple(_rows_of(config, request) for request in requests)
    inputs = {}
    for spec in config.inputs:
        arrays = [request.inputs[spec.name].array for request in requests if spec.name in request.inputs]
        if not arrays:
            continue
        if len(arrays) != len(requests):
            raise ServableError("internal", f"only some requests of a batch have the input '{spec.name}'")
        if spec.ragged and config.max_batch_size > 0:
            arrays = [array.reshape(-1) for array in arrays]
        joined = arrays[0] if len(arrays) == 1 else _join(spec.name, arrays)
        if spec.reshape is not None and not spec.ragged:
            joined = joined.reshape(_reshaped(joined.shape, spec.dims, spec.reshape, config.max_batch_size > 0))
        inputs[spec.name] = Tensor(spec.name, spec.datatype, joined)
    for batch_input in config.batch_inputs:
        array = _batch_input(batch_input, requests, rows)
        for name in batch_input.names:
            inputs[name] = Tensor(name, batch_input.datatype, array)
    return Merged(inputs, rows)


def split(config: ServableConfig, outputs: Mapping[str, Array], rows: Sequence[int]) -> list[dict[str, Tensor]]:
    """Gives each request its rows of a batch's outputs, as views.

    Raises:
        ServableError: An output does not have the batch's rows.
    """
    specs = {spec.name: spec for spec in config.outputs}
    total = sum(rows)
    has_batch = config.max_batch_size > 0
    parts: list[dict[str, Tensor]] = [{} for _ in rows]
    for name, array in outputs.items():
        spec = specs[name]
        if has_batch and (not array.shape or array.shape[0] != total):
            raise ServableError(
                "internal", f"output '{name}' of '{config.name}' has shape {list(array.shape)} for a batch of {total}"
            )
        whole = array
        if spec.reshape is not None:
            whole = array.reshape(_reshaped(array.shape, spec.reshape, spec.dims, has_batch))
        if not has_batch:
            parts[0][name] = Tensor(name, spec.datatype, whole)
            continue
        start = 0
        for part, count in zip(parts, rows, strict=True):
            part[name] = Tensor(name, spec.datatype, whole[start : start + count])
            start += count
    return parts


def pad_rows(array: Array, rows: int) -> Array:
    """Fills a batch up to a fixed size with copies of its first row."""
    missing = rows - array.shape[0]
    if missing <= 0:
        return array
    return np.concatenate([array, np.repeat(array[:1], missing, axis=0)])


def _rows_of(config: ServableConfig, request: InferRequest) -> int:
    if config.max_batch_size <= 0 or not request.inputs:
        return 1
    return int(next(iter(request.inputs.values())).array.shape[0])


def _join(name: str, arrays: list[Array]) -> Array:
    try:
        return np.concatenate(arrays)
    except ValueError as error:
        raise ServableError("internal", f"input '{name}' has different shapes in one batch: {error}") from error


def _reshaped(
    shape: tuple[int, ...], dims: tuple[int, ...], target: tuple[int, ...], has_batch: bool
) -> tuple[int, ...]:
    """The shape `target` for an array that has the shape `dims`: sizes left open are carried over in order."""
    first = shape[:1] if has_batch else ()
    sizes = iter([have for have, want in zip(shape[len(first) :], dims, strict=True) if want == -1])
    return (*first, *(next(sizes) if size == -1 else size for size in target))


def _batch_input(spec: BatchTensor, requests: Sequence[InferRequest], rows: Sequence[int]) -> Array:
    arrays = [request.inputs[spec.sources[0]].array for request in requests]
    counts = [array.size for array in arrays]
    dtype = NUMPY_TYPES[spec.datatype]
    kind = spec.kind.lower()
    if kind == "batch_element_count":
        return np.asarray(counts, dtype=dtype)
    if kind == "batch_accumulated_element_count":
        return np.cumsum(counts).astype(dtype)
    if kind == "batch_accumulated_element_count_with_zero":
        return np.cumsum([0, *counts]).astype(dtype)
    if kind == "batch_max_element_count_as_shape":
        return np.zeros(max(counts), dtype=dtype)
    if kind in ("batch_item_shape", "batch_item_shape_flatten"):
        shapes = [array.shape[1:] for array, count in zip(arrays, rows, strict=True) for _ in range(count)]
        made = np.asarray(shapes, dtype=dtype).reshape(len(shapes), len(arrays[0].shape) - 1)
        return made if kind == "batch_item_shape" else made.reshape(math.prod(made.shape))
    raise ServableError("unsupported", f"batch input kind '{spec.kind}' is not known")

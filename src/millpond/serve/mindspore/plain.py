"""Instances for servables that have no methods: Triton models, our language models, other protocols' ones.

An instance becomes a request of batch size 1 with the datatypes the servable declares; what it has beyond the
servable's inputs become sampling parameters or request parameters. Called by the dispatcher alone.
"""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np

from millpond.serve.mindspore.calls import INVALID_INPUTS, Call, CallError, Instance, Text, check_text
from millpond.serve.mindspore.values import Array, Value, from_tensor, make_text
from millpond.serve.servables.config import ServableConfig
from millpond.serve.servables.messages import InferRequest, InferResponse, Parameter
from millpond.serve.servables.tensors import NUMPY_TYPES, Tensor, TensorSpec

METHODS = ("predict", "infer", "generate")
STREAM_METHODS = ("generated_stream", "generate_stream")
_SAMPLING = "sampling_parameters"
_STREAM = "stream"
_EXCLUDE = "exclude_input_in_output"
_TEXT = "text_input"
_TEXT_NAMES = ("inputs", "prompt", "text", "question")  # what users of other generation APIs call it


def make_plain_request(call: Call, instance: Instance, config: ServableConfig) -> InferRequest:
    """Returns the request for one instance.

    Raises:
        CallError: An input is missing or cannot be one of the servable's.
    """
    specs = {spec.name: spec for spec in config.inputs}
    given = dict(instance)
    if _TEXT in specs and _TEXT not in given:
        alias = next((name for name in _TEXT_NAMES if name in given and name not in specs), None)
        if alias is not None:
            given[_TEXT] = given.pop(alias)
    extras = {name: _to_parameter(name, given.pop(name)) for name in list(given) if name not in specs}
    if extras and _SAMPLING in specs and _SAMPLING not in given:
        given[_SAMPLING] = make_text(json.dumps(extras).encode(), "string")
        extras = {}
    if _STREAM in specs and _STREAM not in given:
        given[_STREAM] = Value("tensor", np.array(call.method in STREAM_METHODS))
    if _EXCLUDE in specs and _EXCLUDE not in given:
        given[_EXCLUDE] = Value("tensor", np.array(True))
    inputs: dict[str, Tensor] = {}
    for name, spec in specs.items():
        if name in given:
            inputs[name] = make_tensor(given[name], spec, has_batch=config.max_batch_size > 0)
        elif not spec.optional:
            raise CallError(
                INVALID_INPUTS,
                f"Cannot find input {name} in instance input , servable {call.servable}, method {call.method}",
            )
    return InferRequest(call.servable, inputs, version=call.version or None, parameters=extras)


def read_plain_response(response: InferResponse, *, has_batch: bool) -> Instance:
    """Returns one response's outputs without the batch dimension; BYTES are strings, one alone is a scalar."""
    outputs: Instance = {}
    for name, tensor in response.outputs.items():
        array = tensor.array[0] if has_batch and tensor.array.ndim else tensor.array
        array = np.asarray(array, dtype=tensor.array.dtype)
        if tensor.datatype == "BYTES" and array.size == 1:
            array = array.reshape(())
        outputs[name] = from_tensor(Tensor(name, tensor.datatype, array))
    return outputs


def read_text(response: InferResponse) -> Text | None:
    """Returns the outputs of a response that are one string and nothing else, as `read_plain_response` has them."""
    if len(response.outputs) != 1:
        return None
    ((name, tensor),) = response.outputs.items()
    if tensor.datatype != "BYTES" or tensor.array.size != 1:
        return None
    content = tensor.array.item()
    return Text(name, content) if isinstance(content, bytes) else None


def join_responses(parts: list[Instance]) -> Instance:
    """Returns the responses of a stream as one: strings are put together, of all else the last one counts."""
    joined: Instance = {}
    for part in parts:
        for name, value in part.items():
            before = joined.get(name)
            joined[name] = value if before is None else _join(before, value)
    return joined


def _join(before: Value, value: Value) -> Value:
    if value.kind != "string" or value.array.ndim or before.array.ndim:
        return value
    return make_text(before.array.item() + value.array.item(), "string")


def _to_parameter(name: str, value: Value) -> Parameter:
    if value.array.size != 1:
        raise CallError(INVALID_INPUTS, f"Input {name} is none of the servable's inputs and no scalar parameter")
    item: Any = value.array.reshape(-1)[0]
    if isinstance(item, bytes):
        return item.decode(errors="replace")
    parameter = item.item()
    # float32 is how the protocol carries 0.7; the shortest decimal that is the same float32 is what was meant.
    return float(str(item)) if isinstance(parameter, float) else parameter


def make_tensor(value: Value, spec: TensorSpec, *, has_batch: bool) -> Tensor:
    """Returns an input in the datatype and, for scalars, the shape that a servable declares.

    Raises:
        CallError: It cannot be.
    """
    if value.kind == "tensor":
        array = _cast(value.array, spec)
    else:
        check_text(spec.name, value)
        array = value.array.reshape(-1)
    want = tuple(1 if size == -1 else size for size in spec.dims)
    if array.ndim != len(spec.dims) and array.size == 1 and math.prod(want) == 1:
        array = array.reshape(want)
    return Tensor(spec.name, spec.datatype, np.ascontiguousarray(array[None] if has_batch else array))


def _cast(array: Array, spec: TensorSpec) -> Array:
    dtype = NUMPY_TYPES.get(spec.datatype)
    if dtype is None or array.dtype == dtype or spec.datatype in ("BYTES", "BF16"):
        return array
    is_whole = array.dtype.kind in "iu" and (dtype.kind == "f" or (dtype.kind in "iu" and _fits(array, dtype)))
    if is_whole or np.can_cast(array.dtype, dtype, "same_kind"):
        return array.astype(dtype)
    raise CallError(
        INVALID_INPUTS, f"Input {spec.name} data type {array.dtype} not match the data type {dtype} of the servable"
    )


def _fits(array: Array, dtype: np.dtype[Any]) -> bool:
    limits = np.iinfo(dtype)
    return not array.size or (int(array.min()) >= limits.min and int(array.max()) <= limits.max)

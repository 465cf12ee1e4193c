"""Infer messages to `InferRequest` and back; outputs always go out as raw bytes, as Triton's do."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from millpond.serve.kserve.classification import classify
from millpond.serve.kserve.late_faults import LateFaults
from millpond.serve.kserve.parameters import apply_parameters
from millpond.serve.kserve.raw import encode_raw
from millpond.serve.kserve.server import KServe
from millpond.serve.proto import inference_pb2 as pb
from millpond.serve.servables.checking import prefix_of
from millpond.serve.servables.config import ServableConfig
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest, InferResponse, Parameter
from millpond.serve.servables.servable import Servable
from millpond.serve.servables.tensors import NUMPY_TYPES, Tensor

_QUIRK: dict[str, Parameter] = {"sequence_id": 0, "sequence_start": False, "sequence_end": False}
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
_KINDS = {  # how Triton names the kinds of typed contents
    "bool_contents": "BOOL",
    "int_contents": "INT32",
    "int64_contents": "INT64",
    "uint_contents": "UINT32",
    "uint64_contents": "UINT64",
    "fp32_contents": "FP32",
    "fp64_contents": "FP64",
    "bytes_contents": "BYTES",
}
_WIDE = {  # numpy would make floats of integers that need all 64 bits
    "int_contents": np.int64,
    "int64_contents": np.int64,
    "uint_contents": np.uint64,
    "uint64_contents": np.uint64,
}
_MAX_DIM = 1 << 40


@dataclass(frozen=True, slots=True)
class Region:
    """A part of a registered region."""

    name: str
    offset: int
    byte_size: int


@dataclass(frozen=True, slots=True)
class OutputWish:
    """How a client wants one output."""

    num_classes: int = 0
    region: Region | None = None


def parse_version(text: str) -> int | None:
    """Returns a version; "" is None.

    Raises:
        ServableError: It is no number.
    """
    if not text:
        return None
    try:
        version = int(text)
    except ValueError:
        version = None
    if version is None or not -(1 << 63) <= version < 1 << 63:
        raise ServableError(
            "invalid_argument",
            f"failed to get model version from specified version string '{text}' (details: stol), "
            "version should be an integral value > 0",
        )
    if version <= 0:
        raise ServableError(
            "invalid_argument",
            f"invalid model version specified '{text}' , version should be an integral value > 0",
        )
    return version


def read_request(
    server: KServe, message: pb.ModelInferRequest, servable: Servable, contents: Sequence[bytes | memoryview] = ()
) -> tuple[InferRequest, dict[str, OutputWish]]:
    """Reads an infer request; `contents` are its raw tensors where they were cut out of the message.

    Raises:
        ServableError: It cannot be read.
    """
    request = InferRequest(message.model_name, {}, parse_version(message.model_version), request_id=message.id)
    values = parameters_of(message.parameters)
    for name in ("sequence_start", "sequence_end"):
        if name in values and not isinstance(values[name], bool):
            raise _wrong_type(name, "bool_param")
    _check_types(values)
    apply_parameters(request, values)
    raw = _RawContents(contents or message.raw_input_contents)
    late = LateFaults()
    for item in message.inputs:
        if item.name in request.inputs:
            raise ServableError(
                "invalid_argument", f"{prefix_of(request)}input '{item.name}' already exists in request"
            )
        request.inputs[item.name] = _read_input(server, message.model_name, item, raw, late)
    raw.check_used()
    wishes: dict[str, OutputWish] = {}
    for wanted in message.outputs:
        given = parameters_of(wanted.parameters)
        region = _region(given, wanted.name)
        classes = given.get("classification", 0)
        if not isinstance(classes, int) or isinstance(classes, bool):
            raise _wrong_type("classification", "int64_param")
        if region is not None and classes:
            raise ServableError("invalid_argument", "shared memory can't be set for classification output")
        if "classification" in given and classes <= 0:
            raise ServableError("invalid_argument", "invalid value for 'classification' parameter, expected >= 0")
        if region is not None:
            server.regions.check(region.name, region.offset, region.byte_size)
        wishes[wanted.name] = OutputWish(classes, region)
    request.outputs = tuple(wishes) or None
    late.check(servable, request)
    return request, wishes


def write_response(
    server: KServe,
    config: ServableConfig,
    request_id: str,
    wishes: Mapping[str, OutputWish],
    response: InferResponse,
) -> pb.ModelInferResponse:
    """Returns a response as a message.

    Raises:
        ServableError: An output cannot be sent as it is wanted.
    """
    message = pb.ModelInferResponse(model_name=response.model, model_version=str(response.version), id=request_id)
    if config.ensemble and not server.settings.is_strict:
        put_parameters(message.parameters, _QUIRK)
    put_parameters(message.parameters, response.parameters)
    specs = {spec.name: spec for spec in config.outputs}
    for tensor in response.outputs.values():
        wish = wishes.get(tensor.name)
        shown = tensor
        if wish is not None and wish.num_classes:
            shown = classify(tensor, wish.num_classes, specs.get(tensor.name), has_batch=config.max_batch_size > 0)
        message.outputs.add(name=shown.name, datatype=shown.datatype, shape=shown.array.shape)
        data = encode_raw(shown.datatype, shown.array)
        if wish is not None and wish.region is not None:
            region = wish.region
            server.regions.write(region.name, region.offset, region.byte_size, data, tensor.name)
            message.raw_output_contents.append(b"")
        else:
            message.raw_output_contents.append(bytes(data))
    return message


def parameters_of(parameters: Mapping[str, Any]) -> dict[str, Parameter]:
    """Returns the values of a map of parameters."""
    values: dict[str, Parameter] = {}
    for name in sorted(parameters):
        choice = parameters[name].WhichOneof("parameter_choice")
        if choice is None:
            raise ServableError("invalid_argument", f"parameter '{name}' has no value")
        values[name] = getattr(parameters[name], choice)
    return values


def put_parameters(message: Any, parameters: Mapping[str, Parameter]) -> None:
    """Puts values into a map of parameters."""
    for name, value in parameters.items():
        if isinstance(value, bool):
            message[name].bool_param = value
        elif isinstance(value, int):
            message[name].int64_param = value
        elif isinstance(value, float):
            message[name].double_param = value
        else:
            message[name].string_param = value


class _RawContents:
    """The raw tensors beside the inputs; those in shared memory have none."""

    def __init__(self, contents: Sequence[bytes | memoryview]) -> None:
        self._contents = contents
        self._at = 0
        self.is_used = len(contents) > 0

    def next(self, name: str, model: str) -> bytes | memoryview:
        if self._at >= len(self._contents):
            raise ServableError(
                "invalid_argument", f"unable to find data for input tensor '{name}' for model '{model}' in request."
            )
        self._at += 1
        return self._contents[self._at - 1]

    def check_used(self) -> None:
        if self._at != len(self._contents):
            raise ServableError(
                "invalid_argument",
                f"expected {self._at} raw_input_contents for the inputs, got {len(self._contents)}",
            )


def _read_input(
    server: KServe,
    model: str,
    item: pb.ModelInferRequest.InferInputTensor,
    raw: _RawContents,
    late: LateFaults,
) -> Tensor:
    name, datatype, shape = item.name, item.datatype, tuple(item.shape)
    if datatype not in NUMPY_TYPES:
        if item.HasField("contents"):
            _typed(item, "<invalid>", model)
        raise ServableError("invalid_argument", f"invalid datatype '{datatype}' for input '{name}' for model '{model}'")
    what = f"input '{name}' for model '{model}'"
    if len(shape) > 32 or any(not 0 <= dim < _MAX_DIM for dim in shape):
        raise ServableError("invalid_argument", f"invalid shape {list(shape)} for {what}")
    region = _region(parameters_of(item.parameters), name) if item.parameters else None
    has_contents = item.HasField("contents")
    try:
        if region is not None:
            if has_contents:
                raise ServableError(
                    "invalid_argument",
                    f"unexpected 'content' provided when using shared memory for input tensor '{name}' for model "
                    f"'{model}'",
                )
            data = server.regions.read(region.name, region.offset, region.byte_size)
            return late.decode(name, datatype, shape, data, what)
        if raw.is_used:
            if has_contents:
                raise ServableError(
                    "invalid_argument",
                    f"contents field must not be specified when using raw_input_contents for '{name}' for model "
                    f"'{model}'",
                )
            return late.decode(name, datatype, shape, raw.next(name, model), what)
        values = _typed(item, datatype, model)
        if datatype != "BYTES" and len(values) != math.prod(shape):
            return late.add(name, datatype, shape, len(values) * NUMPY_TYPES[datatype].itemsize)
        return Tensor(name, datatype, _array(values, datatype, shape, what))
    except ValueError:  # numpy's, for shapes such as [0, 2**39, 2**39]
        raise ServableError("invalid_argument", f"invalid shape {list(shape)} for {what}") from None


def _typed(item: pb.ModelInferRequest.InferInputTensor, datatype: str, model: str) -> Sequence[Any]:
    field = _CONTENTS.get(datatype)
    what = f"input tensor '{item.name}' for model '{model}'"
    given = [found.name for found, _ in item.contents.ListFields()]
    if not given and 0 not in item.shape:
        raise ServableError("invalid_argument", f"unable to find data for {what} in request.")
    other = next((name for name in given if name != field), None)
    if other is not None and len(given) > 1:
        raise ServableError(
            "invalid_argument", f"unexpected explicit tensor data for {what}, binary data was already supplied."
        )
    if other is not None:
        kind = _KINDS[other]
        raise ServableError(
            "invalid_argument", f"unexpected explicit tensor data for {what} of type '{kind}', expected datatype "
            f"'{datatype}'"
        )  # fmt: skip
    if field is None:
        raise ServableError("invalid_argument", f"{datatype} has no typed contents; send raw_input_contents for {what}")
    values: Sequence[Any] = getattr(item.contents, field)
    return values


def _array(values: Sequence[Any], datatype: str, shape: tuple[int, ...], what: str) -> NDArray[np.generic]:
    count = math.prod(shape)
    if len(values) != count:
        raise ServableError(
            "invalid_argument",
            f"unexpected number of string elements {len(values)} for {what}, expecting {count}",
        )
    if datatype == "BYTES":
        array = np.empty(count, dtype=object)
        array[:] = list(values)
        return array.reshape(shape)
    kind = NUMPY_TYPES[datatype]
    wide = np.array(values, dtype=_WIDE.get(_CONTENTS[datatype]))
    return wide.astype(kind).reshape(shape)


def _check_types(values: Mapping[str, Parameter]) -> None:
    """Parameters that have one meaning have one type each."""
    for name in ("priority", "timeout"):
        if name in values and (isinstance(values[name], bool) or not isinstance(values[name], int)):
            raise _wrong_type(name, "int64_param" if name == "timeout" else "int64_param or uint64_param")
    key = values.get("sequence_id", 0)
    if isinstance(key, bool) or not isinstance(key, int | str):
        raise _wrong_type("sequence_id", "int64_param or string_param")


def _region(values: Mapping[str, Parameter], tensor: str) -> Region | None:
    name = values.get("shared_memory_region")
    if name is None:
        return None
    size, offset = values.get("shared_memory_byte_size"), values.get("shared_memory_offset", 0)
    if not isinstance(name, str):
        raise _wrong_type("shared_memory_region", "string_param")
    if size is None:
        raise ServableError(
            "invalid_argument",
            "'shared_memory_byte_size' must be specified along with 'shared_memory_region' parameter for tensor "
            f"'{tensor}'",
        )
    if not isinstance(size, int) or not isinstance(offset, int):
        raise _wrong_type("shared_memory_byte_size", "int64_param")
    return Region(name, int(offset), int(size))


def _wrong_type(name: str, expected: str) -> ServableError:
    return ServableError("invalid_argument", f"invalid value type for '{name}' parameter, expected {expected}.")

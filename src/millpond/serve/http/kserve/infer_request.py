"""An infer request's body as an `InferRequest`: JSON, or JSON with the tensors' raw bytes behind it.

Raw tensors are views of the body. Which of several faults is named, and how, follows Triton. Called by `infer`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from millpond.serve.http.kserve.exchange import Request
from millpond.serve.http.kserve.json_body import array, mapping, member, members, natural, read_json, text
from millpond.serve.http.kserve.json_tensor import tensor_from_json
from millpond.serve.kserve.late_faults import LateFaults
from millpond.serve.kserve.parameters import ClientFault, FieldError, apply_parameters, flag
from millpond.serve.kserve.raw import decode_raw
from millpond.serve.kserve.server import KServe
from millpond.serve.servables.checking import prefix_of
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest
from millpond.serve.servables.servable import Servable
from millpond.serve.servables.tensors import NUMPY_TYPES, Tensor

HEADER_LENGTH = b"inference-header-content-length"
_SOURCES = (
    "Input must set only one of the following fields: 'data', 'binary_data_size' in 'parameters', "
    "'shared_memory_region' in 'parameters'. But "
)
_MAX_DIM = 1 << 40
_LEADING_DIGITS = re.compile(rb"\s*-?[0-9]*")


@dataclass(frozen=True, slots=True)
class Region:
    """A part of a registered region."""

    name: str
    offset: int
    byte_size: int


@dataclass(frozen=True, slots=True)
class OutputWish:
    """How a client wants one output."""

    is_binary: bool = False
    num_classes: int = 0
    region: Region | None = None

    @property
    def is_raw(self) -> bool:
        """Whether it is wanted as raw bytes in the body and nothing else."""
        return self.is_binary and not self.num_classes and self.region is None


@dataclass(slots=True)
class OutputWishes:
    """How a client wants its outputs; `by_name` is None when it named none."""

    is_binary: bool = False
    by_name: dict[str, OutputWish] | None = None
    default: OutputWish = field(default_factory=OutputWish)

    def of(self, name: str) -> OutputWish:
        """Returns how an output is wanted."""
        return self.default if self.by_name is None else self.by_name.get(name, self.default)


@dataclass(slots=True)
class _Binary:
    """The raw bytes behind the JSON, and how far they were used."""

    data: memoryview
    model: str
    at: int = 0

    def take(self, size: int, name: str) -> memoryview:
        if size < 0 or size > len(self.data) - self.at:
            lacking = size - (len(self.data) - self.at)
            raise ServableError(
                "invalid_argument",
                f"unexpected size for input '{name}', expecting {lacking} additional bytes for model '{self.model}'",
            )
        taken = self.data[self.at : self.at + size]
        self.at += size
        return taken


def read_infer(
    server: KServe, request: Request, servable: Servable, version: int | None
) -> tuple[InferRequest, OutputWishes]:
    """Reads an infer request.

    Raises:
        ServableError: It cannot be read.
    """
    given = request.headers.get(HEADER_LENGTH)
    body = request.body
    if given is None and body:
        return _from_document(server, servable, version, read_json(body), _Binary(memoryview(b""), servable.name))
    if not server.settings.is_strict:  # Triton takes the digits that it begins with, and none are 0
        given = _LEADING_DIGITS.match(given or b"0")[0].strip() or b"0"  # type: ignore[index]  # it matches anything
    given = given or b"0"
    if given[:1] == b"-" and given[1:].isdigit() and len(given) <= 10:
        raise ServableError(
            "invalid_argument", f"inference header size should be in range (0, {len(body)}), got: {int(given)}"
        )
    if not given.isdigit() or len(given) > 18:
        raise ServableError(
            "invalid_argument", f"Unable to parse Inference-Header-Content-Length, got: {given.decode('latin-1')}"
        )
    length = int(given)
    if length > len(body):
        raise ServableError(
            "invalid_argument", f"inference header size should be in range (0, {len(body)}), got: {length}"
        )
    if length == 0:
        return _from_raw(servable, version, body)
    view = memoryview(body)
    return _from_document(server, servable, version, read_json(view[:length]), _Binary(view[length:], servable.name))


def _from_document(
    server: KServe, servable: Servable, version: int | None, document: Any, binary: _Binary
) -> tuple[InferRequest, OutputWishes]:
    request = InferRequest(servable.name, {}, version)
    wishes = OutputWishes()
    is_object = isinstance(document, dict)
    if is_object and "id" in document:
        request.request_id = text(document["id"], "id")
    if is_object and "parameters" in document:
        parameters = members(document["parameters"], "failed to get request params.: ")
        wishes.is_binary = apply_parameters(request, parameters, is_http=True)
    wishes.default = OutputWish(wishes.is_binary)
    late = LateFaults()
    for item in array(member(document, "inputs"), "inputs"):
        tensor = _read_input(server, servable.name, item, binary, late)
        if tensor.name in request.inputs:
            raise ServableError(
                "invalid_argument", f"{prefix_of(request)}input '{tensor.name}' already exists in request"
            )
        request.inputs[tensor.name] = tensor
    if binary.at != len(binary.data):
        raise ServableError(
            "invalid_argument",
            f"unexpected additional input data for model '{servable.name}'",
        )
    if "outputs" in document:
        wishes.by_name = {}
        for item in array(document["outputs"], "outputs"):
            name = text(member(item, "name"), "name")
            wish = wishes.by_name[name] = _read_wish(item)
            if wish.region is not None:
                server.regions.check(wish.region.name, wish.region.offset, wish.region.byte_size)
        request.outputs = tuple(wishes.by_name) or None
    late.check(servable, request)
    return request, wishes


def _read_input(server: KServe, model: str, item: Any, binary: _Binary, late: LateFaults) -> Tensor:
    name = text(member(item, "name"), "name")
    datatype = text(member(item, "datatype"), "datatype")
    if datatype not in NUMPY_TYPES:
        raise ServableError("invalid_argument", f"invalid datatype for input {name}")
    shape = tuple(natural(dim, "shape") for dim in array(member(item, "shape"), "shape"))
    if len(shape) > 32 or any(dim >= _MAX_DIM for dim in shape):
        raise ServableError("invalid_argument", f"invalid shape {list(shape)} for input '{name}' for model '{model}'")
    parameters = mapping(item["parameters"], "parameters") if "parameters" in item else {}
    has_data = "data" in item
    sources = [source for source in ("binary_data_size", "shared_memory_region") if source in parameters]
    if len(sources) + has_data != 1:
        found = [f"'{source}'" for source in (["data"] if has_data else []) + sources]
        count = "set " + " ".join(found) if found else "no field is set"
        raise ServableError("invalid_argument", _SOURCES + count)
    region = _region(parameters)
    what = f"input '{name}' for model '{model}'"
    try:
        if has_data:
            flat = tensor_from_json(
                name, datatype, array(item["data"], "data"), math.prod(shape), is_strict=server.settings.is_strict
            )
            return Tensor(name, datatype, flat.reshape(shape))
        if region is not None:
            data: bytes | memoryview = server.regions.read(region.name, region.offset, region.byte_size)
        else:
            data = binary.take(natural(parameters["binary_data_size"], "binary_data_size"), name)
        return late.decode(name, datatype, shape, data, what)
    except ValueError:  # numpy's, for shapes such as [0, 2**39, 2**39]
        raise ServableError("invalid_argument", f"invalid shape {list(shape)} for {what}") from None


def _read_wish(item: Mapping[str, Any]) -> OutputWish:
    if "parameters" not in item:
        return OutputWish()
    parameters = mapping(item["parameters"], "parameters")
    classes = _classes(parameters.get("classification", 0))
    region = _region(parameters)
    if region is not None and classes:
        raise ServableError("invalid_argument", "shared memory can't be set for classification output")
    return OutputWish(flag("binary_data", parameters.get("binary_data", False)), classes, region)


def _region(parameters: Mapping[str, Any]) -> Region | None:
    for name in ("shared_memory_byte_size", "shared_memory_offset"):
        if name in parameters:
            natural(parameters[name], name)
    if "shared_memory_region" not in parameters:
        return None
    return Region(
        text(parameters["shared_memory_region"], "shared_memory_region"),
        natural(parameters.get("shared_memory_offset", 0), "shared_memory_offset"),
        natural(member(parameters, "shared_memory_byte_size"), "shared_memory_byte_size"),
    )


def _classes(value: object) -> int:
    try:
        return natural(value, "classification")
    except FieldError:
        raise ClientFault(
            "Unable to set 'classification': attempt to access JSON non-unsigned-integer as unsigned-integer"
        ) from None


def _from_raw(servable: Servable, version: int | None, body: bytes | memoryview) -> tuple[InferRequest, OutputWishes]:
    """The whole body is the one input's data."""
    config = servable.config
    if len(config.inputs) != 1:
        raise ServableError(
            "invalid_argument",
            "[request id: <id_unknown>] Raw request must only have 1 input (found 1) to be deduced but got "
            f"{len(config.inputs)} inputs in "
            f"'{config.name}' model configuration",
        )
    spec = config.inputs[0]
    shape = ([1] if config.max_batch_size > 0 else []) + list(spec.dims)
    num_open = shape.count(-1)
    known = math.prod(dim for dim in shape if dim != -1)
    is_text = spec.datatype == "BYTES"
    item_size = 1 if is_text else NUMPY_TYPES[spec.datatype].itemsize
    if is_text and tuple(spec.dims) != (1,):
        raise ServableError(
            "invalid_argument",
            f"[request id: <id_unknown>] For BYTE datatype raw input '{spec.name}', the model must have input shape "
            "[1]",
        )
    if num_open > 1:
        raise ServableError(
            "invalid_argument",
            f"The shape of the raw input '{spec.name}' can not be deduced because there are more than one "
            "variable-sized dimension",
        )
    if num_open:
        shape[shape.index(-1)] = len(body) // max(1, known * item_size)
    expected = math.prod(shape) * item_size
    if not is_text and len(body) != expected:
        raise ServableError(
            "invalid_argument",
            f"[request id: <id_unknown>] input byte size mismatch for input 'raw_input' for model '{config.name}'. "
            f"Expected {expected}, got {len(body)}",
        )
    data = len(body).to_bytes(4, "little") + bytes(body) if is_text else body
    what = f"input '{spec.name}' for model '{config.name}'"
    tensor = Tensor(spec.name, spec.datatype, decode_raw(spec.datatype, shape, data, what))
    wishes = OutputWishes(is_binary=True, default=OutputWish(is_binary=True))
    return InferRequest(config.name, {spec.name: tensor}, version), wishes

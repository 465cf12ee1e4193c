"""`ServiceMessages`: the message classes of a servable's service, and tensors in and out of them.

The classes are made of the same plan as the proto file, so what a generated client sends is what is read here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.descriptor_pb2 import DescriptorProto, FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from numpy.typing import NDArray

from millpond.serve.descriptions.proto_plan import ANY, FieldPlan, MessagePlan, ProtoPlan
from millpond.serve.kserve.raw import decode_raw, encode_raw
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.tensors import NUMPY_TYPES, Tensor

_MAX_DIMS = 32
_TYPES = {
    "bool": FieldDescriptorProto.TYPE_BOOL,
    "uint32": FieldDescriptorProto.TYPE_UINT32,
    "uint64": FieldDescriptorProto.TYPE_UINT64,
    "int32": FieldDescriptorProto.TYPE_INT32,
    "int64": FieldDescriptorProto.TYPE_INT64,
    "float": FieldDescriptorProto.TYPE_FLOAT,
    "double": FieldDescriptorProto.TYPE_DOUBLE,
    "bytes": FieldDescriptorProto.TYPE_BYTES,
    "string": FieldDescriptorProto.TYPE_STRING,
}


class ServiceMessages:
    """The classes of one service.

    Args:
        plan: Of the service.
    """

    def __init__(self, plan: ProtoPlan) -> None:
        self._package = plan.package
        self._pool = DescriptorPool()  # its own: a servable that changes makes new classes of the same names
        self._pool.Add(_file(plan))  # type: ignore[no-untyped-call]  # protobuf's has no types

    def class_of(self, message: MessagePlan) -> type[Message]:
        """Returns the class of a message."""
        name = f"{self._package}.{message.name}"
        found = self._pool.FindMessageTypeByName(name)  # type: ignore[no-untyped-call]  # protobuf's has no types
        return GetMessageClass(found)


def read_message(plan: MessagePlan, message: Any, model: str) -> dict[str, Tensor]:
    """Returns the tensors of a request; those that were left out are not there.

    Raises:
        ServableError: A value is no tensor of its datatype; code "invalid_argument".
    """
    tensors = {}
    for field in plan.fields:
        spec = field.spec
        value = getattr(message, field.name)
        what = f"input '{spec.name}' for model '{model}'"
        if _is_left_out(field, message):
            continue
        if field.form == "any":
            datatype, array = _any_tensor(value, what)
        elif field.form == "tensor":
            datatype, array = spec.datatype, _shaped(field, value, what)
        else:
            values = [value] if field.form == "one" else value
            array = _array(spec.datatype, values, what)
            datatype, array = spec.datatype, array.reshape(field.dims if field.form == "one" else len(values))
        tensors[spec.name] = Tensor(spec.name, datatype, array)
    return tensors


def _is_left_out(field: FieldPlan, message: Any) -> bool:
    if field.form in ("any", "tensor"):
        return not message.HasField(field.name)
    if not field.spec.optional:
        return False  # proto3 cannot tell 0 and "left out" apart, so it is 0
    return not (message.HasField(field.name) if field.form == "one" else getattr(message, field.name))


def write_message(plan: MessagePlan, kind: type[Message], outputs: Mapping[str, Tensor]) -> Message:
    """Returns the response with these tensors.

    Raises:
        ServableError: A tensor is not what the file says of it; code "internal".
    """
    message: Any = kind()
    for field in plan.fields:
        tensor = outputs.get(field.spec.name)
        if tensor is None:
            continue
        if field.form == "any":
            item = getattr(message, field.name)
            item.datatype = tensor.datatype
            item.shape.extend(tensor.array.shape)
            item.data = bytes(encode_raw(tensor.datatype, tensor.array))
            continue
        values = _values(tensor)
        if field.form == "one":
            if len(values) != 1:
                raise ServableError(
                    "internal", f"output '{tensor.name}' has {len(values)} elements where one was declared"
                )
            setattr(message, field.name, values[0])
        elif field.form == "list":
            getattr(message, field.name).extend(values)
        else:
            item = getattr(message, field.name)
            item.shape.extend(tensor.array.shape)
            item.data.extend(values)
    return message  # type: ignore[no-any-return]  # made by a class of ours


def _shaped(field: FieldPlan, value: Any, what: str) -> NDArray[np.generic]:
    array = _array(field.spec.datatype, value.data, what)
    shape = _shape(value.shape, what)
    if math.prod(shape) != len(array):
        raise ServableError(
            "invalid_argument", f"{what} has {len(array)} elements, which is not what its shape {list(shape)} holds"
        )
    return array.reshape(shape)


def _any_tensor(value: Any, what: str) -> tuple[str, NDArray[np.generic]]:
    if value.datatype not in NUMPY_TYPES:
        raise ServableError(
            "invalid_argument", f"{what} has the datatype '{value.datatype}'; there are {', '.join(NUMPY_TYPES)}"
        )
    return value.datatype, decode_raw(value.datatype, _shape(value.shape, what), value.data, what)


def _shape(dims: Sequence[int], what: str) -> tuple[int, ...]:
    if len(dims) > _MAX_DIMS or any(dim < 0 for dim in dims):
        raise ServableError(
            "invalid_argument", f"the shape of {what} has a negative dimension or more than {_MAX_DIMS}"
        )
    return tuple(dims)


def _array(datatype: str, values: Sequence[Any], what: str) -> NDArray[np.generic]:
    if datatype == "BYTES":
        array = np.empty(len(values), dtype=object)
        array[:] = values
        return array
    if datatype == "BF16":
        bits = np.array(values, dtype=np.float32).view(np.uint32)
        return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    kind = NUMPY_TYPES[datatype]
    if kind.kind not in "iu":
        return np.array(values, dtype=kind)
    wide = np.array(values, dtype=np.uint64 if kind.kind == "u" else np.int64)
    limits = np.iinfo(kind.name)
    if wide.size and (wide.min() < limits.min or wide.max() > limits.max):
        raise ServableError("invalid_argument", f"{what} has elements that are no {datatype}")
    return wide.astype(kind)


def _values(tensor: Tensor) -> list[Any]:
    flat = tensor.array.reshape(-1)
    if tensor.datatype == "BYTES":
        return [item if isinstance(item, bytes) else str(item).encode() for item in flat.tolist()]
    if tensor.datatype == "BF16":
        flat = (flat.astype(np.uint32) << 16).view(np.float32)
    return flat.tolist()


def _file(plan: ProtoPlan) -> FileDescriptorProto:
    file = FileDescriptorProto(name=f"{plan.package}.proto", package=plan.package, syntax="proto3")
    for call in plan.calls:
        for message in (call.request, call.response):
            _add_message(file.message_type.add(name=message.name), message, plan.package)
    for kind in plan.tensors:
        described = file.message_type.add(name=ANY if kind == ANY else f"{kind.title()}Tensor")
        fields = [("datatype", "string", False), ("shape", "int64", True), ("data", "bytes", False)]
        if kind != ANY:
            fields = [("shape", "int64", True), ("data", kind, True)]
        for number, (name, of, is_repeated) in enumerate(fields, 1):
            label = FieldDescriptorProto.LABEL_REPEATED if is_repeated else FieldDescriptorProto.LABEL_OPTIONAL
            described.field.add(name=name, number=number, type=_TYPES[of], label=label)
    return file


def _add_message(described: DescriptorProto, message: MessagePlan, package: str) -> None:
    for plan in message.fields:
        field = described.field.add(name=plan.name, number=plan.number, json_name=plan.spec.name)
        field.label = FieldDescriptorProto.LABEL_OPTIONAL
        if plan.form in ("any", "tensor"):
            field.type = FieldDescriptorProto.TYPE_MESSAGE
            field.type_name = f".{package}.{ANY if plan.form == 'any' else f'{plan.kind.title()}Tensor'}"
            continue
        field.type = _TYPES[plan.kind]
        if plan.form == "list":
            field.label = FieldDescriptorProto.LABEL_REPEATED
        elif plan.spec.optional:
            field.proto3_optional = True
            field.oneof_index = len(described.oneof_decl)
            described.oneof_decl.add(name=f"_{plan.name}")

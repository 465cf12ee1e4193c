"""`ProtoPlan`: the gRPC service of a servable, its messages and their fields, before it is a file or a server.

A tensor of one element is a plain field, one of one dimension a repeated field, any other a message with its shape.
Names that are none in a proto file are changed and kept as the field's JSON name. `proto.py` writes the plan down, the
gRPC port serves it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from millpond.serve.descriptions.contracts import Contract, default_contract, method_contracts
from millpond.serve.servables.config import ServableConfig
from millpond.serve.servables.tensors import TensorSpec

PACKAGE = "millpond.servables"
ANY = "AnyTensor"
KINDS = {
    "BOOL": "bool",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint32"),
    "UINT64": "uint64",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int32"),
    "INT64": "int64",
    **dict.fromkeys(("FP16", "BF16", "FP32"), "float"),
    "FP64": "double",
    "BYTES": "bytes",
}
Form = Literal["one", "list", "tensor", "any"]


@dataclass(frozen=True, slots=True)
class FieldPlan:
    """One tensor in a message.

    Attributes:
        name: In the file; `spec.name` is its JSON name.
        number: Of the field.
        form: A plain field, a repeated one, a message with a shape, or a message of any datatype.
        kind: The type of the elements in the file; "" for any.
        dims: With a batch dimension where the method has one; -1 is any size.
        spec: The tensor.
    """

    name: str
    number: int
    form: Form
    kind: str
    dims: tuple[int, ...]
    spec: TensorSpec


@dataclass(frozen=True, slots=True)
class MessagePlan:
    """The inputs or the outputs of a method."""

    name: str
    fields: tuple[FieldPlan, ...]


@dataclass(frozen=True, slots=True)
class CallPlan:
    """A method of the service and the contract behind it."""

    name: str
    contract: Contract
    request: MessagePlan
    response: MessagePlan


@dataclass(frozen=True, slots=True)
class ProtoPlan:
    """The service of one servable.

    Attributes:
        model: The servable's name.
        package: Of the file.
        service: The service's name in the package.
        calls: Its methods.
        tensors: Which kinds of elements need a message with a shape; `ANY` for tensors of any datatype.
    """

    model: str
    package: str
    service: str
    calls: tuple[CallPlan, ...]
    tensors: tuple[str, ...]


def service_name(model: str) -> tuple[str, str]:
    """Returns the package and the name of a servable's service."""
    types = _type_names()
    return f"{PACKAGE}.{_Names(set()).of(model.lower())}", types.of(model, is_type=True)


def plan_proto(config: ServableConfig) -> ProtoPlan:
    """Returns the service of a servable."""
    default = default_contract(config)
    contracts = method_contracts(config) or ([default] if default is not None else [])
    package, service = service_name(config.name)
    types = _type_names()
    types.of(config.name, is_type=True)
    calls = []
    for contract in contracts:
        name = types.of(contract.name or "infer", is_type=True)
        request, response = types.of(f"{name}Request", is_type=True), types.of(f"{name}Response", is_type=True)
        calls.append(
            CallPlan(
                name,
                contract,
                MessagePlan(request, tuple(_fields(contract.inputs, contract))),
                MessagePlan(response, tuple(_fields(contract.outputs, contract))),
            )
        )
    fields = [field for call in calls for message in (call.request, call.response) for field in message.fields]
    needed = {ANY if field.form == "any" else field.kind for field in fields if field.form in ("any", "tensor")}
    return ProtoPlan(config.name, package, service, tuple(calls), tuple(sorted(needed)))


class _Names:
    """Gives every name of a scope a form that is allowed and not taken."""

    def __init__(self, taken: set[str]) -> None:
        self._taken = taken

    def of(self, name: str, *, is_type: bool = False) -> str:
        words = [word for word in re.split(r"[^A-Za-z0-9_]+", name) if word]
        made = "".join(word[:1].upper() + word[1:] for word in words) if is_type else "_".join(words)
        if not made or not made[0].isalpha():
            made = f"{'X' if is_type else 'x_'}{made}"
        # Two fields whose names differ in case or underlines alone would have one JSON name.
        chosen, number = made, 2
        while _key(chosen) in self._taken:
            chosen, number = f"{made}{'' if is_type else '_'}v{number}", number + 1
        self._taken.add(_key(chosen))
        return chosen


def _type_names() -> _Names:
    return _Names({_key(f"{kind.title()}Tensor") for kind in (*KINDS.values(), "any")})


def _fields(specs: Iterable[TensorSpec], contract: Contract) -> Iterable[FieldPlan]:
    names = _Names(set())
    for index, spec in enumerate(specs, 1):
        number = index if index < 19_000 else index + 1000  # protobuf keeps those between for itself
        dims = (-1, *spec.dims) if contract.has_batch else spec.dims
        kind = KINDS.get(spec.datatype, "")
        form: Form = "list"
        if not kind:
            form = "any"
        elif len(dims) > 1:
            form = "tensor"
        elif dims in ((1,), ()):
            form = "one"
        yield FieldPlan(names.of(spec.name), number, form, kind, dims, spec)


def _key(name: str) -> str:
    return name.replace("_", "").lower()

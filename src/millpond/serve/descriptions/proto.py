"""`make_proto`: a proto file with a typed message for the inputs and the outputs of every method of a servable.

A tensor of one element is a plain field, one of one dimension a repeated field, any other a message with its shape.
Names that are none in a proto file are changed and kept as the field's JSON name.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass

from millpond.serve.descriptions.contracts import Contract, default_contract, method_contracts
from millpond.serve.servables.config import ServableConfig
from millpond.serve.servables.tensors import TensorSpec

_TYPES = {
    "BOOL": "bool",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint32"),
    "UINT64": "uint64",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int32"),
    "INT64": "int64",
    **dict.fromkeys(("FP16", "BF16", "FP32"), "float"),
    "FP64": "double",
    "BYTES": "bytes",
}
_ANY = "AnyTensor"
_ANY_TEXT = """// A tensor of any datatype: its elements as raw little-endian bytes.
message AnyTensor {
  string datatype = 1;
  repeated int64 shape = 2;
  bytes data = 3;
}
"""


@dataclass(slots=True)
class _Names:
    """Gives every name of a scope a form that is allowed and not taken."""

    taken: set[str]

    def of(self, name: str, *, is_type: bool = False) -> str:
        words = [word for word in re.split(r"[^A-Za-z0-9_]+", name) if word]
        made = "".join(word[:1].upper() + word[1:] for word in words) if is_type else "_".join(words)
        if not made or not made[0].isalpha():
            made = f"{'X' if is_type else 'x_'}{made}"
        # Two fields whose names differ in case or underlines alone would have one JSON name.
        chosen, number = made, 2
        while _key(chosen) in self.taken:
            chosen, number = f"{made}{'' if is_type else '_'}v{number}", number + 1
        self.taken.add(_key(chosen))
        return chosen


def make_proto(config: ServableConfig) -> str:
    """Returns the file's text."""
    default = default_contract(config)
    contracts = method_contracts(config) or ([default] if default is not None else [])
    needed: set[str] = set()
    messages, calls = [], []
    types = _Names({_key(f"{kind.title()}Tensor") for kind in (*_TYPES.values(), "any")})
    service = types.of(config.name, is_type=True)
    for contract in contracts:
        name = types.of(contract.name or "infer", is_type=True)
        request, response = types.of(f"{name}Request", is_type=True), types.of(f"{name}Response", is_type=True)
        messages.append(_message(request, contract.inputs, contract, needed, is_request=True))
        messages.append(_message(response, contract.outputs, contract, needed, is_request=False))
        stream = "stream " if contract.streams else ""
        calls.append(f"{_comment(contract.documentation, '  ')}  rpc {name}({request}) returns ({stream}{response});\n")
    package = _Names(set()).of(config.name.lower())
    return "".join(
        [
            'syntax = "proto3";\n\n',
            f"package millpond.servables.{package};\n\n",
            f"// The methods of the servable {json.dumps(config.name)}.\n",
            f"service {service} {{\n",
            *calls,
            "}\n",
            *(f"\n{message}" for message in messages),
            *(f"\n{_tensor_message(kind)}" for kind in sorted(needed)),
        ]
    )


def _message(
    name: str, specs: Iterable[TensorSpec], contract: Contract, needed: set[str], *, is_request: bool
) -> str:
    lines = [f"message {name} {{\n"]
    names = _Names(set())
    for index, spec in enumerate(specs, 1):
        number = index if index < 19_000 else index + 1000  # protobuf keeps those between for itself
        field = names.of(spec.name)
        dims = (-1, *spec.dims) if contract.has_batch else spec.dims
        kind = _TYPES.get(spec.datatype)
        if kind is None:
            label, kind = "", _ANY
            needed.add(_ANY)
        elif len(dims) > 1:
            needed.add(kind)
            label, kind = "", f"{kind.title()}Tensor"
        elif dims in ((1,), ()):
            label = "optional " if spec.optional else ""
        else:
            label = "repeated "
        shape = ", ".join("?" if dim == -1 else str(dim) for dim in dims)
        shown = f"{spec.datatype}[{shape}]" if spec.datatype else "any tensor"
        note = ", may be left out" if spec.optional and is_request else ""
        own = "" if field == spec.name else f" [json_name = {_string(spec.name)}]"
        lines.append(f"  {label}{kind} {field} = {number}{own};  // {shown}{note}\n")
    return "".join([*lines, "}\n"])


def _tensor_message(kind: str) -> str:
    if kind == _ANY:
        return _ANY_TEXT
    return f"message {kind.title()}Tensor {{\n  repeated int64 shape = 1;\n  repeated {kind} data = 2;\n}}\n"


def _comment(text: str, indent: str) -> str:
    return "".join(f"{indent}// {line}".rstrip() + "\n" for line in text.splitlines())


def _string(text: str) -> str:
    """A proto string: bytes that are no plain character are written as octal."""
    return '"' + "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:03o}" for b in text.encode()) + '"'


def _key(name: str) -> str:
    return name.replace("_", "").lower()

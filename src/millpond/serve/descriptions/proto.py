"""`make_proto`: the proto file of a servable, from its `ProtoPlan`.

What it says is what the gRPC port serves: a client that is generated from it calls the servable by its typed methods.
"""

from __future__ import annotations

import json

from millpond.serve.descriptions.proto_plan import ANY, FieldPlan, MessagePlan, plan_proto
from millpond.serve.servables.config import ServableConfig

_ANY_TEXT = """// A tensor of any datatype: its elements as raw little-endian bytes.
message AnyTensor {
  string datatype = 1;
  repeated int64 shape = 2;
  bytes data = 3;
}
"""


def make_proto(config: ServableConfig) -> str:
    """Returns the file's text."""
    plan = plan_proto(config)
    messages, calls = [], []
    for call in plan.calls:
        stream = "stream " if call.contract.streams else ""
        calls.append(
            f"{_comment(call.contract.documentation, '  ')}"
            f"  rpc {call.name}({call.request.name}) returns ({stream}{call.response.name});\n"
        )
        messages += [_message(call.request, is_request=True), _message(call.response, is_request=False)]
    return "".join(
        [
            'syntax = "proto3";\n\n',
            f"package {plan.package};\n\n",
            f"// The methods of the servable {json.dumps(config.name)}.\n",
            f"service {plan.service} {{\n",
            *calls,
            "}\n",
            *(f"\n{message}" for message in messages),
            *(f"\n{_tensor_message(kind)}" for kind in plan.tensors),
        ]
    )


def _message(message: MessagePlan, *, is_request: bool) -> str:
    lines = [f"message {message.name} {{\n"]
    for field in message.fields:
        spec = field.spec
        shape = ", ".join("?" if dim == -1 else str(dim) for dim in field.dims)
        shown = f"{spec.datatype}[{shape}]" if spec.datatype else "any tensor"
        note = ", may be left out" if spec.optional and is_request else ""
        own = "" if field.name == spec.name else f" [json_name = {_string(spec.name)}]"
        lines.append(f"  {_type(field)} {field.name} = {field.number}{own};  // {shown}{note}\n")
    return "".join([*lines, "}\n"])


def _type(field: FieldPlan) -> str:
    if field.form == "any":
        return ANY
    if field.form == "tensor":
        return f"{field.kind.title()}Tensor"
    if field.form == "list":
        return f"repeated {field.kind}"
    return f"optional {field.kind}" if field.spec.optional else field.kind


def _tensor_message(kind: str) -> str:
    if kind == ANY:
        return _ANY_TEXT
    return f"message {kind.title()}Tensor {{\n  repeated int64 shape = 1;\n  repeated {kind} data = 2;\n}}\n"


def _comment(text: str, indent: str) -> str:
    return "".join(f"{indent}// {line}".rstrip() + "\n" for line in text.splitlines())


def _string(text: str) -> str:
    """A proto string: bytes that are no plain character are written as octal."""
    return '"' + "".join(chr(b) if 32 <= b < 127 and b not in b'"\\' else f"\\{b:03o}" for b in text.encode()) + '"'

"""JSON schemas of tensors: as the inference protocol's JSON has them, as plain values, and as MindSpore's REST does."""

from __future__ import annotations

from typing import Any

from millpond.serve.descriptions.contracts import Contract
from millpond.serve.servables.tensors import TensorSpec

Schema = dict[str, Any]
BINARY_ONLY = ("FP16", "BF16")  # Triton's JSON has no form for them


def element(datatype: str) -> Schema:
    """Returns the schema of one element; {} for an unknown datatype."""
    if datatype == "BOOL":
        return {"type": "boolean"}
    if datatype == "BYTES":
        return {"type": "string"}
    if datatype.startswith(("FP", "BF")):
        return {"type": "number"}
    if datatype.startswith("UINT"):
        return {"type": "integer", "minimum": 0, "maximum": 2 ** int(datatype[4:]) - 1}
    if datatype.startswith("INT"):
        bits = int(datatype[3:])
        return {"type": "integer", "minimum": -(2 ** (bits - 1)), "maximum": 2 ** (bits - 1) - 1}
    return {}


def elements(datatype: str) -> Schema:
    """Returns the schema of flat or nested elements; refers to itself as a component."""
    return {"type": "array", "items": {"anyOf": [element(datatype), {"$ref": f"#/components/schemas/{datatype}Data"}]}}


def infer_request(contract: Contract) -> Schema:
    """Returns the body of `/infer`."""
    inputs = [_tensor(spec, contract, {"parameters": {"type": "object"}}) for spec in contract.inputs]
    names = [spec.name for spec in contract.outputs]
    wished = {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"enum": names}, "parameters": {"type": "object"}},
    }
    needed = sum(not spec.optional for spec in contract.inputs)
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": {"type": "object"},
            "inputs": {"type": "array", "minItems": needed, "maxItems": len(inputs), **_any_of(inputs)},
            "outputs": {"type": "array", "items": wished},
        },
    }


def infer_response(model: str, contract: Contract) -> Schema:
    """Returns the answer of `/infer`."""
    outputs = [_tensor(spec, contract, {"parameters": {"type": "object"}}) for spec in contract.outputs]
    return {
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "model_name": {"const": model},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "parameters": {"type": "object"},
            "outputs": {"type": "array", **_any_of(outputs)},
        },
    }


def plain_object(specs: tuple[TensorSpec, ...], *, is_nested: bool) -> Schema:
    """Returns an object with a member for each tensor.

    Args:
        specs: The tensors.
        is_nested: Whether values have the tensor's dimensions (MindSpore), or are flat (generate).
    """
    required = [spec.name for spec in specs if not spec.optional]
    properties = {spec.name: _nested(spec) if is_nested else _flat(spec) for spec in specs}
    return {"type": "object", "properties": properties, **({"required": required} if required else {})}


def _tensor(spec: TensorSpec, contract: Contract, more: Schema) -> Schema:
    dims = ((-1, *spec.dims) if contract.has_batch else spec.dims) if spec.datatype else None
    properties: Schema = {"name": {"const": spec.name}, **more}
    if spec.datatype:
        properties["datatype"] = {"const": spec.datatype}
    sizes = [{"type": "integer", "minimum": 0} if dim == -1 else {"const": dim} for dim in dims or ()]
    properties["shape"] = {"type": "array", "items": {"type": "integer", "minimum": 0}}
    if dims is not None:
        properties["shape"] |= {"minItems": len(sizes), "maxItems": len(sizes)}
        if sizes:
            properties["shape"]["prefixItems"] = sizes
    if spec.datatype in BINARY_ONLY:
        properties["parameters"] = {"type": "object", "description": "Elements follow the JSON: binary_data_size."}
    elif spec.datatype:
        properties["data"] = {"$ref": f"#/components/schemas/{spec.datatype}Data"}
    return {"type": "object", "required": ["name", "datatype", "shape"], "properties": properties}


def _any_of(tensors: list[Schema]) -> Schema:
    return {"items": {"anyOf": tensors}} if tensors else {}


def _flat(spec: TensorSpec) -> Schema:
    one = element(spec.datatype)
    if all(dim == 1 for dim in spec.dims):
        return {"anyOf": [one, {"type": "array", "items": one, "minItems": 1, "maxItems": 1}]}
    if -1 in spec.dims:
        return {"anyOf": [{"type": "array", "items": one}, one]}
    count = 1
    for dim in spec.dims:
        count *= dim
    return {"type": "array", "items": one, "minItems": count, "maxItems": count}


def _nested(spec: TensorSpec) -> Schema:
    if not spec.datatype:
        return {}
    schema = element(spec.datatype)
    coded = {
        "type": "object",
        "required": ["b64"],
        "properties": {
            "b64": {"type": "string", "contentEncoding": "base64"},
            "type": {"type": "string"},
            "shape": {"type": "array", "items": {"type": "integer", "minimum": 0}},
        },
    }
    if spec.dims == (1,):
        return {"anyOf": [schema, {"type": "array", "items": schema, "minItems": 1, "maxItems": 1}, coded]}
    for dim in reversed(spec.dims):
        schema = {"type": "array", "items": schema, **({} if dim == -1 else {"minItems": dim, "maxItems": dim})}
    return {"anyOf": [schema, coded]}

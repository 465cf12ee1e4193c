"""`make_openapi`: an OpenAPI 3.1 document of servables, with the types of their inputs and outputs.

A servable has `/infer` and `/generate` (or `/generate_stream`) on the Triton port; its methods have MindSpore Serving's
path on that protocol's port.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any
from urllib.parse import quote

from millpond.serve.descriptions.contracts import Contract, default_contract, method_contracts
from millpond.serve.descriptions.schemas import (
    BINARY_ONLY,
    Schema,
    elements,
    infer_request,
    infer_response,
    plain_object,
)
from millpond.serve.servables.config import ServableConfig
from millpond.serve.servables.tensors import NUMPY_TYPES

_MINDSPORE = [
    {
        "url": "http://{address}",
        "description": "The port of mindspore.http_port, where it is open.",
        "variables": {"address": {"default": "127.0.0.1:1500"}},
    }
]


def make_openapi(configs: Iterable[ServableConfig], version: str) -> dict[str, Any]:
    """Returns the document.

    Args:
        configs: What is described.
        version: Of the server.
    """
    paths: dict[str, Any] = {}
    for config in configs:
        paths |= _paths(config)
    schemas = {f"{name}Data": elements(name) for name in NUMPY_TYPES}
    schemas["Error"] = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
    schemas["InstanceError"] = {
        "type": "object",
        "required": ["error_msg"],
        "properties": {"error_msg": {"type": "string"}},
    }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Servables",
            "version": version,
            "description": "What this server's models take and give, from their configurations.",
        },
        "paths": paths,
        "components": {"schemas": schemas},
    }


def _paths(config: ServableConfig) -> dict[str, Any]:
    paths: dict[str, Any] = {}
    name = quote(config.name, safe="")
    default = default_contract(config)
    if default is not None and not default.streams:
        paths[f"/v2/models/{name}/infer"] = {"post": _infer(config.name, default)}
    if default is not None and not any(spec.datatype in BINARY_ONLY for spec in default.inputs + default.outputs):
        action = "generate_stream" if default.streams else "generate"
        paths[f"/v2/models/{name}/{action}"] = {"post": _generate(config.name, default, action)}
    for contract in method_contracts(config):
        paths[f"/model/{name}:{quote(contract.name, safe='')}"] = {
            "servers": _MINDSPORE,
            "post": _method(config.name, contract),
        }
    return paths


def _infer(model: str, contract: Contract) -> dict[str, Any]:
    return {
        **_heading(model, "infer", contract),
        "requestBody": _body(infer_request(contract)),
        "responses": _responses(_json(infer_response(model, contract)), "Error"),
    }


def _generate(model: str, contract: Contract, action: str) -> dict[str, Any]:
    request = plain_object(contract.inputs, is_nested=False)
    reply = plain_object(contract.outputs, is_nested=False)
    reply.pop("required", None)  # a response has the outputs that the model gave
    reply["properties"] |= {"model_name": {"const": model}, "model_version": {"type": "string"}}
    content = _events(reply) if contract.streams else _json(reply)
    return {
        **_heading(model, action, contract),
        "requestBody": _body(request),
        "responses": _responses(content, "Error"),
    }


def _method(model: str, contract: Contract) -> dict[str, Any]:
    instance = plain_object(contract.inputs, is_nested=True)
    request = {
        "type": "object",
        "required": ["instances"],
        "properties": {"instances": {"anyOf": [instance, {"type": "array", "minItems": 1, "items": instance}]}},
    }
    result = {"anyOf": [plain_object(contract.outputs, is_nested=True), _ref("InstanceError")]}
    reply = {
        "type": "object",
        "properties": {"instances": {"type": "array", "items": result}, "error_msg": {"type": "string"}},
    }
    content = _events(reply) if contract.streams else _json(reply)
    return {
        **_heading(model, contract.name, contract),
        "requestBody": _body(request),
        "responses": _responses(content, "InstanceError"),
    }


def _heading(model: str, action: str, contract: Contract) -> dict[str, Any]:
    summary, _, more = contract.documentation.partition("\n")
    heading = {"operationId": f"{model}.{action}", "summary": summary or f"Asks {model}.", "tags": [model]}
    return heading | ({"description": more.strip()} if more.strip() else {})


def _body(schema: Schema) -> dict[str, Any]:
    return {"required": True, "content": _json(schema)}


def _responses(content: dict[str, Any], error: str) -> dict[str, Any]:
    failed = {"content": _json(_ref(error))}
    return {
        "200": {"description": "The answer.", "content": content},
        "4XX": {"description": "The request is wrong, or nobody is asked by it.", **failed},
        "5XX": {"description": "The model failed or cannot be used now; its reason.", **failed},
    }


def _json(schema: Schema) -> dict[str, Any]:
    return {"application/json": {"schema": schema}}


def _events(schema: Schema) -> dict[str, Any]:
    return {"text/event-stream": {"schema": {"type": "string"}, "x-event": schema}}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}

"""Bodies of requests and replies: `{"instances": ...}` to instances and back.

JSON is read by Python's parser, which like the original's takes the last of equal keys; numbers that are no JSON (NaN)
are refused. Raises `CallError`. Knows no HTTP.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Sequence
from typing import Any, NoReturn

import msgspec
import numpy as np

from millpond.serve.http.mindspore.values import parse_value
from millpond.serve.mindspore.calls import FAILED, INVALID_INPUTS, CallError, Failure, Instance, Result, common_failure
from millpond.serve.mindspore.values import Value

_PARSING = "Parser request failed, "


def parse_body(body: bytes) -> Any:
    """Returns a body as JSON.

    Raises:
        CallError: It is empty or no JSON.
    """
    if not body:
        raise CallError(INVALID_INPUTS, "http message invalid")
    try:
        return json.loads(body.decode(), parse_constant=_refuse_constant, parse_int=_parse_int)
    except RecursionError:
        raise CallError(INVALID_INPUTS, "Illegal JSON format.it is nested too deeply") from None
    except ValueError as error:
        raise CallError(INVALID_INPUTS, f"Illegal JSON format.{error}") from None


def parse_instances(document: Any) -> list[Instance]:
    """Returns the instances of a request.

    Raises:
        CallError: There are none, or a value means nothing.
    """
    try:
        return _parse_instances(document)
    except CallError as error:
        raise CallError(error.code, _PARSING + error.message, status=error.status) from None
    except RecursionError:
        raise CallError(INVALID_INPUTS, f"{_PARSING}json is nested too deeply") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _parse_int(digits: str) -> int | float:
    # An integer of very many digits takes quadratic time to read and fits no datatype.
    return int(digits) if len(digits) <= 20 else float(digits)


def _parse_instances(document: Any) -> list[Instance]:
    if not isinstance(document, dict) or "instances" not in document:
        raise CallError(INVALID_INPUTS, "key 'instances' expects to exist once, but actually 0 times")
    instances = document["instances"]
    if isinstance(instances, dict):
        if not instances:
            raise CallError(INVALID_INPUTS, "json object, value is empty")
        return [_parse_instance(instances)]
    if isinstance(instances, list) and not instances:
        raise CallError(INVALID_INPUTS, "instances value is array type, but no value")
    if not isinstance(instances, list) or not isinstance(instances[0], dict):
        raise CallError(INVALID_INPUTS, "instances no key mode is not supported")
    for instance in instances:
        if not isinstance(instance, dict):
            raise CallError(INVALID_INPUTS, "json array, instance is not object type")
        if not instance:
            raise CallError(INVALID_INPUTS, "json array, instance is object type, but no value")
    return [_parse_instance(instance) for instance in instances]


def _parse_instance(instance: dict[str, Any]) -> Instance:
    if "" in instance:
        raise CallError(INVALID_INPUTS, "string key is empty")
    return {name: parse_value(value) for name, value in instance.items()}


def make_reply(results: Sequence[Result]) -> bytes:
    """Returns the body for a call's results.

    Raises:
        CallError: An output cannot be written as JSON.
    """
    failure = common_failure(results)
    if failure is not None:
        return make_error(failure.message)
    return msgspec.json.encode({"instances": [_render_result(result) for result in results]})


def make_error(message: str) -> bytes:
    """Returns the body for a call that failed."""
    return msgspec.json.encode({"error_msg": _writable(message)})


def _writable(message: str) -> str:
    """A message may quote the client, and JSON can say half of a surrogate pair where UTF-8 cannot."""
    return message.encode("utf-8", "replace").decode("utf-8")


def _render_result(result: Result) -> dict[str, Any]:
    if isinstance(result, Failure):
        return {"error_msg": _writable(result.message)}
    return {name: render_value(result[name]) for name in sorted(result)}


def render_value(value: Value) -> Any:
    """Returns an output as JSON: numbers and strings as they are, bytes as `{"b64": ...}`.

    Raises:
        CallError: A string is no UTF-8.
    """
    array = value.array
    if value.kind == "tensor":
        return array.tolist()
    flat = [_render_text(value.kind, item) for item in array.reshape(-1).tolist()]
    return flat[0] if array.ndim == 0 else _nest(flat, array.shape)


def _render_text(kind: str, item: Any) -> Any:
    if kind == "bytes":
        return {"b64": base64.b64encode(item).decode()}
    return render_text(item) if isinstance(item, bytes) else str(item)


def render_text(content: bytes) -> str:
    """Returns a string as JSON has it.

    Raises:
        CallError: It is no UTF-8.
    """
    try:
        return content.decode()
    except UnicodeDecodeError:
        raise CallError(FAILED, "Failed to construct the response", status=500) from None


def _nest(flat: list[Any], shape: tuple[int, ...]) -> Any:
    array = np.empty(math.prod(shape), dtype=object)
    array[:] = flat
    return array.reshape(shape).tolist()

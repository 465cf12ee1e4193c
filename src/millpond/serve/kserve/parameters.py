"""Parameters of a request: those with a meaning of their own, and those that go on to the model.

HTTP hands over what stands in its JSON, gRPC the Python values of its messages.
"""

from __future__ import annotations

from collections.abc import Mapping

from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest, Parameter, SequenceRef

EMPTY_FINAL = "triton_enable_empty_final_response"
_MAX_TIMEOUT_US = 1 << 62
_RESERVED = "parameter keys starting with 'triton_' are reserved for Triton usage"
_ALLOWED = "Only the following keys starting with 'triton_' are allowed: "


class ClientFault(ServableError):
    """A request that is wrong; Triton calls that an internal error, a strict server and gRPC do not."""

    def __init__(self, text: str) -> None:
        super().__init__("internal", text, is_client_fault=True)


class FieldError(ClientFault):
    """A field is missing or has the wrong type."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"Unable to parse '{name}': {text}")


def apply_parameters(request: InferRequest, parameters: Mapping[str, object], *, is_http: bool = False) -> bool:
    """Puts parameters where they belong in a request; returns whether all outputs are wanted as raw bytes.

    Args:
        request: Gets them.
        parameters: In the order in which they stand.
        is_http: Whether they may say "binary_data_output", and may not ask for empty responses.

    Raises:
        ServableError: One has a type that it cannot have, or a name that is reserved.
    """
    key: int | str = 0
    start = end = is_binary = False
    for name, value in parameters.items():
        if name == "sequence_id":
            if isinstance(value, bool) or not isinstance(value, int | str) or not is_key(value):
                raise FieldError(name, "attempt to access JSON non-string as string")
            key = value
        elif name == "sequence_start":
            start = flag(name, value)
        elif name == "sequence_end":
            end = flag(name, value)
        elif name == "binary_data_output" and is_http:
            is_binary = flag(name, value)
        elif name == "priority":
            request.priority = _count(name, value)
        elif name == "timeout":
            request.timeout_us = min(_count(name, value), _MAX_TIMEOUT_US)
        elif name.startswith("triton_") and (is_http or name != EMPTY_FINAL):
            allowed = " and should not be specified." if is_http else f". {_ALLOWED}{EMPTY_FINAL}"
            raise ServableError("invalid_argument", f"{_RESERVED}{allowed}")
        else:
            request.parameters[name] = plain(name, value)
    if key:
        request.sequence = SequenceRef(key, start, end)
    return is_binary


def is_key(value: int | str) -> bool:
    """Returns whether a value can name a sequence."""
    return isinstance(value, str) or 0 <= value < 1 << 64


def plain(name: str, value: object) -> Parameter:
    """Returns the value of a parameter that goes on to the model.

    Raises:
        ServableError: It is not a number, a text or a boolean.
    """
    if isinstance(value, bool | int | float | str):
        return value
    raise ServableError(
        "invalid_argument", f"parameter '{name}' has invalid type. It should be either 'int', 'bool', or 'string'."
    )


def flag(name: str, value: object) -> bool:
    """Returns a parameter that must be a boolean.

    Raises:
        FieldError: It is not.
    """
    if not isinstance(value, bool):
        raise FieldError(name, "attempt to access JSON non-boolean as boolean")
    return value


def _count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 1 << 64:
        raise FieldError(name, "attempt to access JSON non-unsigned-integer as unsigned-integer")
    return value

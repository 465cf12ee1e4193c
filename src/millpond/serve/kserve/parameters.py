"""Parameters of a request: those with a meaning of their own, and those that go on to the model.

HTTP hands over what stands in its JSON, gRPC the Python values of its messages.
"""

from __future__ import annotations

from collections.abc import Mapping

from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest, Parameter, SequenceRef

EMPTY_FINAL = "triton_enable_empty_final_response"
_MAX_TIMEOUT_US = 1 << 62


class ClientFault(ServableError):
    """A request that is wrong; Triton calls that an internal error, a strict server and gRPC do not."""

    def __init__(self, text: str) -> None:
        super().__init__("internal", text, is_client_fault=True)


class FieldError(ClientFault):
    """A field is missing or has the wrong type."""

    def __init__(self, name: str, text: str) -> None:
        super().__init__(f"Unable to parse '{name}': {text}")


def apply_parameters(request: InferRequest, parameters: Mapping[str, object]) -> None:
    """Puts parameters where they belong in a request.

    Raises:
        ServableError: One has a type that it cannot have, or a name that is reserved.
    """
    key: int | str = 0
    start = end = False
    for name, value in parameters.items():
        if name == "sequence_id":
            if isinstance(value, bool) or not isinstance(value, int | str) or (isinstance(value, int) and value < 0):
                raise FieldError(name, "attempt to access JSON non-unsigned-integer as unsigned-integer")
            key = value
        elif name == "sequence_start":
            start = _flag(name, value)
        elif name == "sequence_end":
            end = _flag(name, value)
        elif name == "priority":
            request.priority = _count(name, value)
        elif name == "timeout":
            request.timeout_us = min(_count(name, value), _MAX_TIMEOUT_US)
        elif name.startswith("triton_") and name != EMPTY_FINAL:
            raise ServableError(
                "invalid_argument",
                "parameter keys starting with 'triton_' are reserved for Triton usage and should not be specified.",
            )
        else:
            request.parameters[name] = plain(name, value)
    if key:
        request.sequence = SequenceRef(key, start, end)


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


def _flag(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise FieldError(name, "attempt to access JSON non-boolean as boolean")
    return value


def _count(name: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise FieldError(name, "attempt to access JSON non-unsigned-integer as unsigned-integer")
    return value

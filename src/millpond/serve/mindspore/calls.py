"""`Call` and what comes of it: results or failures by instance, or one failure of the whole call.

Codes are those of the protocol's `ErrorMsg`. Nothing here is sent or received.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from millpond.serve.mindspore.values import Value

FAILED = 1
INVALID_INPUTS = 2
SYSTEM_ERROR = 3
WORKER_UNAVAILABLE = 4
SERVABLE_UNAVAILABLE = 5

Instance = dict[str, Value]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an instance has no result."""

    code: int
    message: str


class Text(NamedTuple):
    """A result of a stream that is one string, in UTF-8: what a language model says with every token."""

    name: str
    content: bytes


class CallError(Exception):
    """A whole call failed.

    Args:
        code: One of the codes above.
        message: What the client reads.
        status: The HTTP status of the strict form.
    """

    def __init__(self, code: int, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status


@dataclass(frozen=True, slots=True)
class Call:
    """Instances for one method; version 0 is the newest that runs."""

    servable: str
    method: str
    version: int
    instances: list[Instance]

    def describe(self) -> str:
        """Returns the original's words for what was asked."""
        version = f" version({self.version}) " if self.version else ""
        return f"servable({self.servable}) method({self.method}) {version}"


Result = Instance | Failure


def common_failure(results: Sequence[Result]) -> Failure | None:
    """Returns the failure of all instances when they failed alike: the protocol then sends it once."""
    first = results[0]
    if isinstance(first, Failure) and all(result == first for result in results):
        return first
    return None


def check_instances(call: Call, inputs: Sequence[str], optional: frozenset[str] = frozenset()) -> list[Instance]:
    """Returns the instances with the method's inputs only; an optional one may be missing.

    Raises:
        CallError: There is none, an input is missing, or a string is not a scalar.
    """
    if not call.instances:
        raise CallError(
            INVALID_INPUTS,
            f"Instances count of request cannot be 0, servable: {call.servable}, method: {call.method}",
        )
    return [_check_instance(call, instance, inputs, optional) for instance in call.instances]


def _check_instance(call: Call, instance: Instance, inputs: Sequence[str], optional: frozenset[str]) -> Instance:
    checked: Instance = {}
    for name in inputs:
        value = instance.get(name)
        if value is None and name in optional:
            continue
        if value is None:
            raise CallError(
                INVALID_INPUTS,
                f"Cannot find input {name} in instance input , servable {call.servable}, method {call.method}",
            )
        if value.kind != "tensor":
            check_text(name, value)
        checked[name] = value
    return checked


def check_text(name: str, value: Value) -> None:
    """Raises `CallError` unless a string or bytes value is one element, of shape () or (1,)."""
    shape = list(value.array.shape)
    prefix = f"Instances input {name} check failed, detail: Instance tensor check failed: bytes or string type"
    if value.array.size != 1:
        raise CallError(INVALID_INPUTS, f"{prefix} shape batch size can only be 1")
    if shape not in ([], [1]):
        raise CallError(INVALID_INPUTS, f"{prefix} input  shape can only be (1,) or empty, but given shape is {shape}")

"""`InferRequest` and `InferResponse`: what every protocol makes and every back end answers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import msgspec

from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.tensors import Tensor

if TYPE_CHECKING:
    from millpond.serve.servables.tracing import RequestTrace

Parameter = bool | int | float | str


@dataclass(frozen=True, slots=True)
class SequenceRef:
    """The sequence a request belongs to; `key` is never 0 or empty."""

    key: int | str
    start: bool = False
    end: bool = False


class Alike:
    """What was found out about requests that differ in nothing but the numbers in their tensors.

    Attributes:
        checker: Who found that such requests are right.
        rows: Their batch size.
    """

    __slots__ = ("checker", "rows")

    def __init__(self) -> None:
        self.checker: object = None
        self.rows = 0


class InferRequest(msgspec.Struct):
    """One request to one servable.

    Attributes:
        model: The servable's name.
        inputs: By name; with the batch dimension first where the servable has one.
        version: None means: as the version policy says (the newest that is ready).
        method: For servables with several methods (MindSpore Serving); "" is the only or default one.
        request_id: The client's, or "".
        outputs: Names of the outputs that are wanted; None means all.
        parameters: What the client sent beside the tensors, without those that have a field here.
        priority: 0 is the servable's default; 1 is the most urgent.
        timeout_us: How long it may wait in a queue, microseconds; 0 is the servable's default.
        sequence: Set for servables that keep state between requests.
        arrived_ns: `time.monotonic_ns()` when the adapter had it whole; 0 is filled in by the registry.
        trace: Records what happens to it; None for most.
        alike: Shared by requests that have the same names, datatypes, shapes and wishes; None when nobody knows others.
    """

    model: str
    inputs: dict[str, Tensor]
    version: int | None = None
    method: str = ""
    request_id: str = ""
    outputs: tuple[str, ...] | None = None
    parameters: dict[str, Parameter] = {}
    priority: int = 0
    timeout_us: int = 0
    sequence: SequenceRef | None = None
    arrived_ns: int = 0
    trace: RequestTrace | None = None
    alike: Alike | None = None


class InferResponse(msgspec.Struct):
    """One response. A servable that is not decoupled gives exactly one, and it is final.

    Attributes:
        model: Who answered.
        version: Which version answered.
        outputs: By name; only those that were wanted. May be empty in the last one of a decoupled servable.
        parameters: Of the response.
        final: Whether no other follows.
        error: Why this response has no outputs; a decoupled stream may go on after it unless `final`.
    """

    model: str
    version: int
    outputs: dict[str, Tensor] = {}
    parameters: dict[str, Parameter] = {}
    final: bool = True
    error: ServableError | None = None

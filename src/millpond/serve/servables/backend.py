"""`Backend`, `Instance` and `Replies`: what a back end must be; one file (or one folder) implements them.

The registry calls `complete` and `load`; batchers call `Instance.execute`. Requests are already checked against the
configuration: names, datatypes, shapes and batch size are right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import msgspec
import numpy as np
from numpy.typing import NDArray

from millpond.serve.room import Room
from millpond.serve.servables.config import InstanceGroup, ServableConfig
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest, InferResponse


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """Where a version's files are.

    Attributes:
        path: The model's folder; None for a servable that is not in a repository.
        version: The version; its files are in `path / str(version)`.
        files: Contents that came with the load request, by path relative to the model's folder; they win over files.
    """

    path: Path | None
    version: int
    files: dict[str, bytes] = field(default_factory=dict)


class ExecutionTiming(msgspec.Struct):
    """Nanoseconds of one execution, for statistics; without `waited_ns` they add up to the execution's own time.

    Attributes:
        compute_input_ns: Until the model had its inputs.
        compute_infer_ns: In the model.
        compute_output_ns: Until its outputs were here.
        waited_ns: Before all that, behind other executions of the instance.
    """

    compute_input_ns: int = 0
    compute_infer_ns: int = 0
    compute_output_ns: int = 0
    waited_ns: int = 0


class Replies(Protocol):
    """Takes the responses of one execution. Call on the event loop's thread."""

    def send(self, index: int, response: InferResponse) -> None:
        """Passes a response on to request `index` of the execution. Ignored after its final one."""

    def cancelled(self, index: int) -> bool:
        """Whether nobody waits for request `index` any more."""

    def reschedule(self, index: int) -> None:
        """Asks that request `index` is executed again after this execution, instead of having a final response now.

        Only where the sequence batching is iterative; elsewhere the request is answered with an error.
        """


@runtime_checkable
class Paced(Protocol):
    """Replies that say when a client has enough for a while; those of the registry do."""

    def room(self, index: int) -> Room | None:
        """Returns where the responses of request `index` go; None when nobody knows whether there is room."""


class Instance(Protocol):
    """A loaded replica. `concurrency` is how many calls of `execute` may be open at once, mostly 1."""

    concurrency: int

    async def execute(self, requests: Sequence[InferRequest], replies: Replies) -> ExecutionTiming:
        """Runs the requests as one batch and sends every request's responses, the last one final.

        Raises:
            ServableError: The execution failed; every request without a final response gets this error. After
                code "unavailable" the registry calls `restart` (with back-off) before it uses the instance again.
        """

    async def cancel(self, request: InferRequest) -> None:
        """Tells the back end that nobody waits for a request that is being executed. May do nothing."""

    async def restart(self) -> None:
        """Brings the replica back after its process died. Raises `ServableError` when it cannot be."""

    async def close(self) -> None:
        """Frees all it holds; never raises."""


@runtime_checkable
class Beginner(Protocol):
    """An instance that needs no task to execute."""

    def begin(
        self, requests: Sequence[InferRequest], replies: Replies, ended: Ended, freed: Freed | None = None
    ) -> object:
        """Runs a batch as `execute` does, but returns at once; `ended` is told its timing or its error.

        Args:
            requests: The batch.
            replies: Takes the responses.
            ended: Called once, after the last response.
            freed: Called before the responses of a batch that was executed are sent: the next one can begin.

        Raises:
            ServableError: It could not be begun; `ended` is not called then.
        """


@runtime_checkable
class Lender(Protocol):
    """An instance that reads tensors from memory of its own."""

    def lend(self, num_bytes: int) -> NDArray[np.uint8] | None:
        """Returns a place for so many bytes; arrays that are views of it are not copied on their way to the instance.

        None when there is no room. The place is given back when the last view of it is gone.
        """


def queues_ahead(instance: Instance) -> bool:
    """Whether an instance runs executions in the order in which they were given, also those it is given while it runs.

    One that does says so with an attribute of this name.
    """
    return bool(getattr(instance, "queues_ahead", False))


Ended = Callable[[ExecutionTiming | ServableError], None]
Freed = Callable[[], None]


class Backend(Protocol):
    """A kind of servable."""

    name: str

    async def complete(self, config: ServableConfig, folder: ModelFolder) -> ServableConfig:
        """Fills in what the configuration leaves open (inputs, outputs, batch size) from the model itself.

        Raises:
            ServableError: The model cannot be read, or contradicts the configuration.
        """

    async def load(self, config: ServableConfig, folder: ModelFolder, group: InstanceGroup, number: int) -> Instance:
        """Makes replica `number` of a group ready to execute.

        Raises:
            ServableError: It cannot be loaded; the text is the reason that the repository's index shows.
        """

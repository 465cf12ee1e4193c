"""`Servable` and what marks its parts: `method`, `pipeline`, `stage`, `Model`.

Decorators only note what was said; `millpond.serving.loading` reads the notes in the worker and makes the stage graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, overload

Function = TypeVar("Function", bound=Callable[..., Any])
MARK = "__millpond_mark__"


@dataclass(frozen=True, slots=True)
class Mark:
    """What a decorator said of a function.

    Attributes:
        kind: Which decorator.
        batch_size: None is an instance a call; 0 is as many as there are; n is at most n.
        output: Name of the only output.
        outputs: How many values a stage returns.
    """

    kind: Literal["method", "pipeline", "stage"]
    batch_size: int | None = None
    output: str = "output"
    outputs: int = 1


class Servable:
    """Base of servables: subclass it, and give it methods.

    Attributes:
        max_batch_size: Most instances that are executed together; 0 for requests without a batch dimension.
        num_workers: How many processes run it; the configuration's `num_parallel_workers` wins.
    """

    max_batch_size: int = 64
    num_workers: int = 1

    def load(self, parameters: dict[str, str], folder: str, version: int) -> None:
        """Runs once in every worker before requests come.

        Args:
            parameters: Those of the configuration.
            folder: The model's folder, "" when it has none.
            version: Which version this is; its files are in the folder of that name.
        """

    def close(self) -> None:
        """Runs once before a worker ends."""


class Model:
    """Another servable, as a stage of a pipeline.

    Args:
        name: Its name where it is served.
        outputs: How many of its outputs the call returns.
        version: Which version; None is the newest.
        method: Of a servable with methods.
        inputs: Names of its inputs, in the order of the call's arguments; empty for its own order.
        output_names: Names of the outputs to return; empty for the first ones.
    """

    def __init__(
        self,
        name: str,
        *,
        outputs: int = 1,
        version: int | None = None,
        method: str = "",
        inputs: tuple[str, ...] = (),
        output_names: tuple[str, ...] = (),
    ) -> None:
        self.name = name
        self.outputs = len(output_names) or outputs
        self.version = version
        self.method = method
        self.inputs = inputs
        self.output_names = output_names

    def __call__(self, *arguments: Any) -> Any:
        """Stands for a call inside a pipeline; anywhere else it is an error."""
        raise RuntimeError(f"model '{self.name}' can only be called in the body of a @pipeline")


@overload
def method(function: Function) -> Function: ...


@overload
def method(*, batch_size: int | None = None, output: str = "output") -> Callable[[Function], Function]: ...


def method(function: Function | None = None, *, batch_size: int | None = None, output: str = "output") -> Any:
    """Marks a function that clients call.

    Parameters and result are annotated with types of `millpond.serving`; several outputs are the fields of a
    NamedTuple; `Iterator[...]` streams.

    Args:
        function: The method itself, when the decorator is used bare.
        batch_size: None calls it once an instance. 0 or n calls it with lists, one a parameter, of as many instances
            as there are or at most n; it returns a list or is a generator of one result an instance.
        output: Name of the output when there is one.
    """
    return _marked(function, Mark("method", batch_size, output))


@overload
def stage(function: Function) -> Function: ...


@overload
def stage(*, batch_size: int | None = None, outputs: int = 1) -> Callable[[Function], Function]: ...


def stage(function: Function | None = None, *, batch_size: int | None = None, outputs: int = 1) -> Any:
    """Marks a function that pipelines call.

    Args:
        function: The function itself, when the decorator is used bare.
        batch_size: As in `method`.
        outputs: How many values it returns.
    """
    return _marked(function, Mark("stage", batch_size, outputs=outputs))


@overload
def pipeline(function: Function) -> Function: ...


@overload
def pipeline(*, output: str = "output") -> Callable[[Function], Function]: ...


def pipeline(function: Function | None = None, *, output: str = "output") -> Any:
    """Marks a method whose body connects stages and models. It runs once, when the servable is loaded, to see how.

    Args:
        function: The method itself, when the decorator is used bare.
        output: Name of the output when there is one.
    """
    return _marked(function, Mark("pipeline", output=output))


def _marked(function: Any, mark: Mark) -> Any:
    if mark.batch_size is not None and mark.batch_size < 0:
        raise ValueError(f"batch_size is {mark.batch_size}; it may be None, 0 or more")

    def put(function: Any) -> Any:
        setattr(function, MARK, mark)
        return function

    return put if function is None else put(function)

"""`StageProgram`: the methods of a servable as graphs of stages, and the functions behind them.

A program lives in the worker; the gateway only learns how its methods look from outside. Whoever offers a way to write
servables (`millpond.serving`, the MindSpore Serving flavour) writes a loader: a function that runs in the worker and
returns a `StageProgram`. The stages back end finds it by name in the configuration's parameter `loader`
("package.module:function"). Knows no processes and no protocols.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from millpond.serve.servables.tensors import TensorSpec

METHOD_INPUTS = -1
LOADER = "loader"
NUM_PARALLEL_WORKERS = "num_parallel_workers"

# Called in the worker with (the servable's parameters, the folder of the model or "", its version).
Loader = Callable[[Mapping[str, str], str, int], "StageProgram"]
# A stage per instance: f(*arguments) -> result or tuple of results. Batched: f(list of argument tuples) -> iterable
# of results, one an instance and in order; a result that is an exception fails its instance only.
StageFunction = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class Value:
    """Where an argument or a result comes from.

    Attributes:
        stage: Index of the stage that makes it, or `METHOD_INPUTS`.
        output: Which of that stage's outputs, or which input of the method.
    """

    stage: int
    output: int = 0


@dataclass(frozen=True, slots=True)
class FunctionStage:
    """A Python function that runs in a worker process.

    Attributes:
        function: Its key in `StageProgram.functions`; also what errors call it.
        arguments: In the order of the function's parameters.
        outputs: How many values it returns.
        batch_size: None: called once an instance. 0: called with as many instances as are there. n: with at most n.
        streams: A generator whose every item is a response of its own; only for the last stage of a method.
    """

    function: str
    arguments: tuple[Value, ...]
    outputs: int = 1
    batch_size: int | None = None
    streams: bool = False


@dataclass(frozen=True, slots=True)
class ModelStage:
    """A call of another servable, of any back end, through the gateway's batching.

    Attributes:
        model: The servable's name.
        arguments: In the order of its inputs, or of `inputs` when that is given.
        outputs: How many of its outputs are taken, in its order, or that of `output_names`.
        version: None is the newest.
        method: Of that servable, when it has several.
        inputs: Names of its inputs; empty means all, in its order.
        output_names: Names of its outputs; empty means the first `outputs` of them.
        unbatched: Indexes of arguments that have no batch dimension even when the servable has one: the first
            instance's value is passed on for all.
    """

    model: str
    arguments: tuple[Value, ...]
    outputs: int = 1
    version: int | None = None
    method: str = ""
    inputs: tuple[str, ...] = ()
    output_names: tuple[str, ...] = ()
    unbatched: tuple[int, ...] = ()


Stage = FunctionStage | ModelStage


@dataclass(frozen=True, slots=True)
class MethodGraph:
    """One method: its stages in an order in which every value is made before it is used.

    Attributes:
        name: What requests call it.
        inputs: Of one instance, so without a batch dimension. A spec whose datatype is "" takes any tensor.
        outputs: Like inputs; datatype "" promises nothing.
        stages: May be empty: then results are inputs.
        results: Where every output comes from, in the order of `outputs`.
        streams: Whether a request has any number of responses: its last stage streams.
    """

    name: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    stages: tuple[Stage, ...]
    results: tuple[Value, ...]
    streams: bool = False

    def check(self) -> None:
        """Raises `ValueError` when a stage uses a value that is not there yet, or streams before the end."""
        counts = {METHOD_INPUTS: len(self.inputs)}
        for index, stage in enumerate(self.stages):
            for value in stage.arguments:
                self._check_value(value, counts, f"stage {index + 1}")
            if isinstance(stage, FunctionStage) and stage.streams and index + 1 != len(self.stages):
                raise ValueError(f"method '{self.name}': stage {index + 1} streams but is not the last")
            counts[index] = stage.outputs
        for value in self.results:
            self._check_value(value, counts, "the result")
        last = self.stages[-1] if self.stages else None
        if self.streams and not (isinstance(last, FunctionStage) and last.streams and last.batch_size is None):
            raise ValueError(f"method '{self.name}' streams but its last stage is no generator of single instances")
        if len(self.results) != len(self.outputs):
            raise ValueError(
                f"method '{self.name}' has {len(self.outputs)} outputs but returns {len(self.results)} values"
            )

    def _check_value(self, value: Value, counts: Mapping[int, int], where: str) -> None:
        if not 0 <= value.output < counts.get(value.stage, 0):
            raise ValueError(f"method '{self.name}': {where} uses a value that no earlier stage makes")


@dataclass(slots=True)
class StageProgram:
    """What a loader returns in the worker: methods, and the functions their stages name.

    Attributes:
        methods: The first is the default one.
        functions: By the names that `FunctionStage.function` uses.
        max_batch_size: Most instances that are executed together; 0 when requests carry no batch dimension.
        prepare: By method name: makes an instance's arrays (None for an input left out) into what stages are given.
        num_workers: How many processes run it where the configuration does not say.
        close: Called once before the worker ends.
        documentation: By method name, for descriptions that are generated from the program.
    """

    methods: tuple[MethodGraph, ...]
    functions: dict[str, StageFunction]
    max_batch_size: int = 64
    prepare: dict[str, Callable[[tuple[Any, ...]], tuple[Any, ...]]] = field(default_factory=dict)
    num_workers: int = 1
    close: Callable[[], None] | None = None
    documentation: dict[str, str] = field(default_factory=dict)

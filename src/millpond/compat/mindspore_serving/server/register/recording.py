"""`Recording`: what a `servable_config.py` declared while it was run: models, stage functions, methods.

The register functions write to the recording that is current in their context; `record` makes one current. A worker
process reads it afterwards and runs it. Raises `RuntimeError` with the original's texts. Knows no tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

Source = tuple[int, int]  # (stage, which of its outputs); stage 0 is the method's inputs


@dataclass(slots=True)
class DeclaredModel:
    """A model of one or several subgraphs.

    Attributes:
        num_threads: 0 is the worker's share of the machine.
        counts: What methods said of a subgraph's inputs and outputs.
    """

    key: str
    files: tuple[str, ...]
    model_format: str
    with_batch_dim: bool = True
    without_batch_dim_inputs: tuple[int, ...] = ()
    num_threads: int = 0
    rank_size: int = 0
    stage_size: int = 0
    enable_pipeline_infer: bool = False
    counts: dict[int, tuple[int, int]] = field(default_factory=dict)

    @property
    def is_distributed(self) -> bool:
        """Whether agents hold the model, a rank each."""
        return self.rank_size > 0


@dataclass(frozen=True, slots=True)
class StageFunction:
    """A Python function used as a stage. `takes_batch` functions get many instances at a time."""

    name: str
    call: Callable[..., Any]
    num_inputs: int
    num_outputs: int
    takes_batch: bool


@dataclass(frozen=True, slots=True)
class Stage:
    """One step of a method; `name` is a function's name or a model's key. `batch_size` 0 is the server's choice."""

    kind: Literal["function", "model"]
    name: str
    inputs: tuple[Source, ...]
    num_outputs: int
    batch_size: int = 0
    tag: str = ""


@dataclass(frozen=True, slots=True)
class Method:
    """A method of the servable."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    stages: tuple[Stage, ...]
    returns: tuple[Source, ...]


class ModelRunner(Protocol):
    """Runs a declared model on instances; set by the worker, for `Model.call`."""

    def __call__(self, key: str, instances: Sequence[tuple[Any, ...]], subgraph: int) -> tuple[tuple[Any, ...], ...]:
        """Returns each instance's outputs."""


class Recording:
    """Everything one servable declared.

    Args:
        servable: The servable's name.
    """

    def __init__(self, servable: str) -> None:
        self.servable = servable
        self.models: dict[str, DeclaredModel] = {}
        self.functions: dict[str, StageFunction] = {}
        self.methods: dict[str, Method] = {}
        self.run_model: ModelRunner | None = None

    def declare(self, model: DeclaredModel) -> None:
        """Adds a model."""
        if any(known.is_distributed for known in self.models.values()):
            raise RuntimeError("Declare model failed, servable has already been declared as distributed servable")
        if model.is_distributed and self.models:
            raise RuntimeError(
                "Declare distributed model failed, servable has already been declared as local servable"
            )
        used = {file for known in self.models.values() for file in known.files}
        for file in model.files:
            if file in used:
                raise RuntimeError(
                    f"Declare model {list(model.files)} failed, model file '{file}' has already been used"
                )
        self.models[model.key] = model

    def note_counts(self, key: str, subgraph: int, num_inputs: int, num_outputs: int) -> None:
        """Remembers how a method uses a model, and that all do so alike."""
        counts = self.models[key].counts
        old_inputs, old_outputs = counts.setdefault(subgraph, (num_inputs, num_outputs))
        for word, new, old in (("inputs", num_inputs, old_inputs), ("outputs", num_outputs, old_outputs)):
            if new != old:
                raise RuntimeError(
                    f"RegisterInputOutputInfo failed, {word} count {new} not match old count {old}, model: {key}"
                )

    def add_function(self, function: StageFunction, method: str) -> None:
        """Adds a stage function, or finds that it is used as before."""
        known = self.functions.get(function.name)
        if known is not None:
            self.check_function(known, function.num_inputs, function.num_outputs, method)
            if known.takes_batch != function.takes_batch:
                raise RuntimeError(
                    f"Failed to add stage function {function.name}: parameter 'batch_size' in multiple 'add_stage' "
                    f"should be enabled or disabled consistently"
                )
        self.functions[function.name] = function

    def check_function(self, known: StageFunction, num_inputs: int, num_outputs: int, method: str) -> None:
        """Raises `RuntimeError` when a function is used with other counts than before."""
        for word, new, old in (
            ("inputs", num_inputs, known.num_inputs),
            ("outputs", num_outputs, known.num_outputs),
        ):
            if new != old:
                raise RuntimeError(
                    f"Stage function '{known.name}' {word} count {new} not match last registered count {old}, "
                    f"method name '{method}'"
                )

    def add_method(self, method: Method) -> None:
        """Adds a method."""
        if method.name in self.methods:
            raise RuntimeError(f"Method {method.name} has been registered more than once.")
        self.methods[method.name] = method


_current: ContextVar[Recording] = ContextVar("mindspore_serving_recording")


@contextmanager
def record(servable: str) -> Iterator[Recording]:
    """Makes a new recording the current one."""
    recording = Recording(servable)
    token = _current.set(recording)
    try:
        yield recording
    finally:
        _current.reset(token)


def current() -> Recording:
    """Returns the current recording; makes one for a `servable_config.py` that is run by hand."""
    recording = _current.get(None)
    if recording is None:
        recording = Recording("servable")
        _current.set(recording)
    return recording

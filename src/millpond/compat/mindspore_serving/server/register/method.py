"""Registering methods: `register_method` runs a function once with placeholders, `add_stage` records what it does.

The stages become a `Method` of the current recording. Called by a `servable_config.py`. Knows nothing of execution.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, TypeVar

from millpond.compat.mindspore_serving.server.checks import check_int, check_str, check_strs
from millpond.compat.mindspore_serving.server.register.model import Model
from millpond.compat.mindspore_serving.server.register.recording import (
    Method,
    Recording,
    Source,
    Stage,
    StageFunction,
    current,
)

F = TypeVar("F", bound=Callable[..., Any])


class _TensorDef:
    """A placeholder for a method's input or a stage's output."""

    def __init__(self, stage: int, index: int) -> None:
        self.source: Source = (stage, index)


@dataclass(frozen=True, slots=True)
class _Use:
    """How a stage is used in a method."""

    sources: tuple[Source, ...]
    num_outputs: int
    batch_size: int | None
    tag: str


@dataclass(slots=True)
class MethodInWork:
    """The method whose function is being run; `older_calls` is for the deprecated calls."""

    name: str
    function: Callable[..., Any]
    stages: list[Stage] = field(default_factory=list)
    older_calls: dict[str, int] | None = None
    called: set[str] = field(default_factory=set)


_in_work: ContextVar[MethodInWork] = ContextVar("mindspore_serving_method")


def method_in_work() -> MethodInWork:
    """Returns the method being registered; raises `RuntimeError` outside of one."""
    method = _in_work.get(None)
    if method is None:
        raise RuntimeError("Stages can only be added inside a function wrapped by register_method")
    return method


def add_stage(
    stage: Callable[..., Any] | Model | str,
    *args: Any,
    outputs_count: int,
    batch_size: int | None = None,
    tag: str | None = None,
) -> Any:
    """Adds a stage to the method being registered.

    Args:
        stage: A function, or a model from `declare_model`.
        args: Inputs of the method or outputs of stages before.
        outputs_count: How many outputs it has.
        batch_size: None calls a function for one instance at a time, with the inputs as its arguments. A number calls
            it with a tuple of at most so many instances, 0 with as many as the server likes; it returns or yields each
            instance's outputs.
        tag: A name for messages.

    Returns:
        A placeholder, or a tuple of them.

    Raises:
        RuntimeError: An argument is wrong.
    """
    method = method_in_work()
    tag = "" if tag is None else check_str("tag", tag)
    check_int("outputs_count", outputs_count, 1)
    if not all(isinstance(item, _TensorDef) for item in args):
        raise RuntimeError(
            "Each value of parameter *args is a placeholder for data and must come from the method inputs or the "
            "outputs of add_stage"
        )
    recording = current()
    use = _Use(tuple(item.source for item in args), outputs_count, batch_size, tag)
    if isinstance(stage, Model):
        added = _model_stage(recording, method, stage, use)
    else:
        added = _function_stage(recording, method, stage, use)
    method.stages.append(added)
    outputs = tuple(_TensorDef(len(method.stages), index) for index in range(outputs_count))
    return outputs[0] if outputs_count == 1 else outputs


def register_method(output_names: str | Sequence[str]) -> Callable[[F], F]:
    """Makes a function a method of the servable: its name, its parameters' names, the stages it adds.

    Args:
        output_names: The names of what it returns.

    Raises:
        RuntimeError: The function is not of a form that can be recorded.
    """
    outputs = check_strs("output_names", output_names)

    def register(function: F) -> F:
        name = function.__name__
        method = MethodInWork(name, function)
        inputs = _input_names(name, function)
        with _working_on(method):
            returned = function(*[_TensorDef(0, index) for index in range(len(inputs))])
        if method.older_calls is not None and len(method.stages) != len(method.older_calls):
            raise RuntimeError(
                f"Failed to parse method {name}, the number of stages obtained through the AST "
                f"{len(method.older_calls)} is inconsistent with the running result {len(method.stages)}. Condition "
                f"and loop statements are not supported in methods currently."
            )
        returns = _returns(returned, len(outputs))
        current().add_method(Method(name, inputs, outputs, tuple(method.stages), returns))
        return function

    return register


@contextmanager
def _working_on(method: MethodInWork) -> Any:
    token = _in_work.set(method)
    try:
        yield
    finally:
        _in_work.reset(token)


def _input_names(name: str, function: Callable[..., Any]) -> tuple[str, ...]:
    parameters = inspect.signature(function).parameters
    for key, parameter in parameters.items():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD, parameter.KEYWORD_ONLY):
            raise RuntimeError(f"'{name}' input {key} cannot be {parameter.kind.name} !")
    return tuple(parameters)


def _returns(returned: Any, expected: int) -> tuple[Source, ...]:
    items = returned if isinstance(returned, (tuple, list)) else (returned,)
    if not all(isinstance(item, _TensorDef) for item in items):
        raise RuntimeError(
            "Each value returned is a placeholder for data and must come from the method inputs or the outputs of "
            "add_stage"
        )
    if len(items) != expected:
        raise RuntimeError(f"Method return output size {len(items)} not match registered {expected}")
    return tuple(item.source for item in items)


def _model_stage(recording: Recording, method: MethodInWork, model: Model, use: _Use) -> Stage:
    if model.model_key not in recording.models:
        raise _wrong_stage(method, "")
    recording.note_counts(model.model_key, 0, len(use.sources), use.num_outputs)
    return Stage("model", model.model_key, use.sources, use.num_outputs, tag=use.tag)


def _function_stage(recording: Recording, method: MethodInWork, stage: object, use: _Use) -> Stage:
    num_inputs = len(use.sources)
    if isinstance(stage, str):
        known = recording.functions.get(stage)
        if known is None:
            raise RuntimeError(
                f"Check failed in method '{method.name}', '{stage}' is no stage function; the original's built-in C++ "
                f"stages are not here, use a Python function"
            )
        recording.check_function(known, num_inputs, use.num_outputs, method.name)
        return Stage("function", stage, use.sources, use.num_outputs, use.batch_size or 0, use.tag)
    if not inspect.isfunction(stage):
        raise _wrong_stage(method, f", now is {type(stage)}")
    if use.batch_size is None:
        num_parameters = len(inspect.signature(stage).parameters)
        if num_parameters != num_inputs:
            raise RuntimeError(
                f"function {stage.__name__} input args count {num_parameters} not match the count {num_inputs} "
                f"registered in method"
            )
    else:
        check_int("batch_size", use.batch_size, 0)
    name = f"{recording.servable}.{stage.__name__}"
    function = StageFunction(name, stage, num_inputs, use.num_outputs, takes_batch=use.batch_size is not None)
    recording.add_function(function, method.name)
    return Stage("function", name, use.sources, use.num_outputs, use.batch_size or 0, use.tag)


def _wrong_stage(method: MethodInWork, detail: str) -> RuntimeError:
    return RuntimeError(
        f"Check failed in method '{method.name}', the parameter 'stage' of add_stage must be function or Model "
        f"returned by declare_model{detail}"
    )

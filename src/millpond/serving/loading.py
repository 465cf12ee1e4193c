"""`load_program`: a `Servable` class as a `StageProgram`; the stages back end calls it in every worker.

The class is in `servable.py` of the version's folder or of the model's, or is named by the parameter `servable`
("package.module:Class").
"""

from __future__ import annotations

import collections.abc
import importlib
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from millpond.serve.backends.stage_graph import METHOD_INPUTS, FunctionStage, MethodGraph, StageProgram, Value
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.tensors import TensorSpec
from millpond.serve.workers.runners.python_source import PythonSource
from millpond.serving.declare import MARK, Mark, Servable
from millpond.serving.recording import record
from millpond.serving.types import ValueType, item_of, value_type

FILE = "servable.py"
_STREAMS = (collections.abc.Iterator, collections.abc.Iterable, collections.abc.Generator)


def load_program(parameters: Mapping[str, str], folder: str, version: int) -> StageProgram:
    """Makes the servable and describes it.

    Raises:
        ServableError: There is no such class, it cannot be made, or its methods cannot be served.
    """
    source = None
    if "servable" in parameters:
        module_name, _, class_name = parameters["servable"].partition(":")
        try:
            found = getattr(importlib.import_module(module_name), class_name)
        except (ImportError, AttributeError) as error:
            raise ServableError("internal", f"'{parameters['servable']}' cannot be imported: {error}.") from error
    else:
        source = PythonSource(Path(folder), version, parameters.get("file", FILE), Path(folder).name)
        found = _only_servable(source.load(), parameters.get("class", ""))
    if not (isinstance(found, type) and issubclass(found, Servable)):
        raise ServableError("internal", f"'{found}' is no subclass of millpond.serving.Servable.")
    try:
        servable = found()
        servable.load(dict(parameters), folder, version)
        return program_of(servable)
    except (Exception, SystemExit) as error:
        if isinstance(error, ServableError):
            raise
        text = source.describe(error) if source is not None else f"{type(error).__name__}: {error}"
        raise ServableError("internal", text) from error


def program_of(servable: Servable) -> StageProgram:
    """Returns the program of a servable.

    Raises:
        TypeError: An annotation is missing or cannot be served.
        ValueError: A pipeline makes no sense, or there are no methods.
    """
    functions: dict[str, Callable[..., Any]] = {}
    marks = _marks(type(servable))
    for name, mark in marks.items():
        if mark.kind != "pipeline":
            functions[name] = _as_stage_function(getattr(servable, name), mark)
    readers = {name: _MethodReader(servable, name, mark) for name, mark in marks.items() if mark.kind != "stage"}
    if not readers:
        raise ValueError(f"{type(servable).__name__} has no @method and no @pipeline")
    return StageProgram(
        methods=tuple(reader.graph() for reader in readers.values()),
        functions=functions,
        max_batch_size=servable.max_batch_size,
        num_workers=servable.num_workers,
        prepare={name: reader.prepare for name, reader in readers.items()},
        close=servable.close,
        documentation={name: inspect.getdoc(getattr(servable, name)) or "" for name in readers},
    )


class _MethodReader:
    """Reads one method's signature."""

    def __init__(self, servable: Servable, name: str, mark: Mark) -> None:
        self._servable = servable
        self._name = name
        self._mark = mark
        function = getattr(servable, name)
        hints = typing.get_type_hints(function, include_extras=True)
        self._types: list[ValueType] = []
        self._defaults: list[Any] = []
        self._inputs: list[TensorSpec] = []
        is_list = mark.batch_size is not None
        for parameter in inspect.signature(function).parameters.values():
            where = f"parameter '{parameter.name}' of '{name}'"
            if parameter.kind is not inspect.Parameter.POSITIONAL_OR_KEYWORD:
                raise TypeError(f"{where} must be a plain parameter")
            kind = value_type(_item(hints.get(parameter.name), is_list=is_list, where=where), where)
            is_optional = parameter.default is not inspect.Parameter.empty
            self._types.append(kind)
            self._defaults.append(parameter.default)
            self._inputs.append(kind.spec(parameter.name, optional=is_optional))
        where = f"the result of '{name}'"
        result = hints.get("return")
        streamed = None if is_list else item_of(result, _STREAMS)
        self._streams = streamed is not None
        result = streamed if streamed is not None else _item(result, is_list=is_list, where=where)
        self._outputs = self._read_outputs(result, where)

    def prepare(self, arrays: tuple[Any, ...]) -> tuple[Any, ...]:
        """Returns an instance's arrays as the values that stages get."""
        return tuple(
            default if array is None else kind.value_of(array)
            for array, kind, default in zip(arrays, self._types, self._defaults, strict=True)
        )

    def graph(self) -> MethodGraph:
        """Returns the method's stages."""
        if self._mark.kind == "pipeline":
            stages, results = record(self._servable, self._name, len(self._inputs))
            if self._streams and stages and isinstance(stages[-1], FunctionStage):
                stages = (*stages[:-1], replace(stages[-1], streams=True))
        else:
            arguments = tuple(Value(METHOD_INPUTS, index) for index in range(len(self._inputs)))
            count = len(self._outputs)
            size = self._mark.batch_size
            stages = (FunctionStage(self._name, arguments, count, size, streams=self._streams),)
            results = tuple(Value(0, index) for index in range(count))
        made = MethodGraph(
            self._name, tuple(self._inputs), tuple(self._outputs), stages, results, streams=self._streams
        )
        made.check()
        return made

    def _read_outputs(self, annotation: Any, where: str) -> list[TensorSpec]:
        if isinstance(annotation, type) and issubclass(annotation, tuple) and hasattr(annotation, "_fields"):
            hints = typing.get_type_hints(annotation, include_extras=True)
            return [value_type(hints[field], f"'{field}' of {where}").spec(field) for field in hints]
        return [value_type(annotation, where).spec(self._mark.output)]


def _as_stage_function(function: Callable[..., Any], mark: Mark) -> Callable[..., Any]:
    """Returns a function as stages call it: batched ones get columns instead of instances."""
    if mark.batch_size is None:
        return function

    def call(instances: list[tuple[Any, ...]]) -> Any:
        return function(*(list(column) for column in zip(*instances, strict=True)))

    return call


def _item(annotation: Any, *, is_list: bool, where: str) -> Any:
    if annotation is None:
        raise TypeError(f"{where} has no annotation")
    if not is_list:
        return annotation
    item = item_of(annotation, (list, *_STREAMS))
    if item is None:
        raise TypeError(f"{where} must be annotated list[...], because the method is called with batches")
    return item


def _marks(servable: type[Servable]) -> dict[str, Mark]:
    marks: dict[str, Mark] = {}
    for base in reversed(servable.__mro__):
        for name, member in vars(base).items():
            if (mark := getattr(member, MARK, None)) is not None:
                marks[name] = mark
    return marks


def _only_servable(module: ModuleType, name: str) -> Any:
    found = [
        member
        for member in vars(module).values()
        if isinstance(member, type)
        and issubclass(member, Servable)
        and member.__module__ == module.__name__
        and name in ("", member.__name__)
    ]
    if len(found) != 1:
        names = ", ".join(member.__name__ for member in found) or "none"
        raise ServableError("internal", f"'{FILE}' must define one subclass of Servable; it has {names}.")
    return found[0]

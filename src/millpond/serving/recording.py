"""`record`: runs a pipeline's body once with symbols in place of values, and notes which stages it connects."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from millpond.serve.backends.stage_graph import METHOD_INPUTS, FunctionStage, ModelStage, Stage, Value
from millpond.serving.declare import MARK, Mark, Model, Servable


@dataclass(frozen=True, slots=True)
class Symbol:
    """Stands for a value that there will be."""

    value: Value

    def __bool__(self) -> bool:
        raise TypeError("a pipeline has no branches: its body runs once, before there are values")

    def __iter__(self) -> Any:
        raise TypeError("one value cannot be unpacked: say @stage(outputs=n) or Model(outputs=n)")


@dataclass(slots=True)
class _Recorder:
    """What a pipeline's body gets as `self`."""

    servable: Servable
    method: str
    stages: list[Stage] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        member = getattr(self.servable, name)
        mark: Mark | None = getattr(member, MARK, None)
        if isinstance(member, Model):
            return lambda *arguments: self._add_model(member, arguments)
        if mark is not None and mark.kind == "stage":
            return lambda *arguments: self._add_function(name, mark, arguments)
        raise TypeError(f"pipeline '{self.method}' uses self.{name}, which is neither a @stage nor a Model")

    def _add_model(self, model: Model, arguments: tuple[Any, ...]) -> Any:
        return self._add(
            ModelStage(
                model.name,
                self._values(model.name, arguments),
                model.outputs,
                version=model.version,
                method=model.method,
                inputs=model.inputs,
                output_names=model.output_names,
            )
        )

    def _add_function(self, name: str, mark: Mark, arguments: tuple[Any, ...]) -> Any:
        return self._add(FunctionStage(name, self._values(name, arguments), mark.outputs, mark.batch_size))

    def _add(self, stage: Stage) -> Any:
        self.stages.append(stage)
        symbols = tuple(Symbol(Value(len(self.stages) - 1, output)) for output in range(stage.outputs))
        return symbols[0] if len(symbols) == 1 else symbols

    def _values(self, name: str, arguments: tuple[Any, ...]) -> tuple[Value, ...]:
        for argument in arguments:
            if not isinstance(argument, Symbol):
                raise TypeError(
                    f"pipeline '{self.method}' gives '{name}' a {type(argument).__name__}; stages take inputs of the "
                    "pipeline and results of other stages"
                )
        return tuple(argument.value for argument in arguments)


def record(servable: Servable, name: str, num_inputs: int) -> tuple[tuple[Stage, ...], tuple[Value, ...]]:
    """Returns the stages of a pipeline and where its results come from.

    Raises:
        TypeError: The body does something else than connect stages.
    """
    recorder = _Recorder(servable, name)
    body = getattr(type(servable), name)
    result = body(recorder, *(Symbol(Value(METHOD_INPUTS, index)) for index in range(num_inputs)))
    results = result if isinstance(result, tuple) else (result,)
    if not all(isinstance(item, Symbol) for item in results):
        raise TypeError(f"pipeline '{name}' must return results of stages")
    return tuple(recorder.stages), tuple(item.value for item in results)

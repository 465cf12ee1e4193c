"""`StageRuns`: instances through a method's stages: functions in this process, models through the gateway.

Values of instances are any Python objects here; what leaves is made into arrays by `stage_program`. Of an instance that
failed, the later stages see nothing.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from millpond.serve.backends.stage_graph import METHOD_INPUTS, FunctionStage, MethodGraph, ModelStage, Value
from millpond.serve.servables.errors import ServableError
from millpond.serve.workers.host import Host
from millpond.serve.workers.runners.model_stage import ModelCaller
from millpond.serve.workers.wire import ErrorWire

Instance = tuple[Any, ...]


class StreamedItems:
    """What a streaming stage yields, each item as a tuple of outputs."""

    def __init__(self, function: str, items: Iterator[Any], count: int) -> None:
        self._function = function
        self._items = items
        self._count = count

    def __iter__(self) -> Iterator[Instance]:
        while True:
            try:
                item = next(self._items)
            except StopIteration:
                return
            except (Exception, SystemExit) as error:
                raise _failed(self._function, error) from error
            yield _outputs(self._function, item, self._count)

    def close(self) -> None:
        """Ends the generator."""
        close: Callable[[], None] | None = getattr(self._items, "close", None)
        if close is not None:
            close()


class StageRuns:
    """Runs methods.

    Args:
        host: For stages that are models.
        functions: By the names that stages use.
    """

    def __init__(self, host: Host, functions: Mapping[str, Callable[..., Any]]) -> None:
        self._functions = functions
        self._models = ModelCaller(host)

    def run(self, method: MethodGraph, instances: Sequence[Instance]) -> list[Any]:
        """Returns every instance's tuple of outputs, or its exception, or its `StreamedItems`."""
        made: dict[int, list[Any]] = {METHOD_INPUTS: list(instances)}
        failed: dict[int, Exception] = {}
        for number, stage in enumerate(method.stages):
            alive = [index for index in range(len(instances)) if index not in failed]
            arguments = [tuple(_read(made, value, index) for value in stage.arguments) for index in alive]
            results: list[Any] = [None] * len(instances)
            for index, result in zip(alive, self._run_stage(stage, arguments), strict=True):
                results[index] = result
                if isinstance(result, Exception):
                    failed[index] = result
            made[number] = results
        finished: list[Any] = []
        for index in range(len(instances)):
            if index in failed:
                finished.append(failed[index])
            elif method.streams:
                finished.append(made[len(method.stages) - 1][index])
            else:
                finished.append(tuple(_read(made, value, index) for value in method.results))
        return finished

    def _run_stage(self, stage: FunctionStage | ModelStage, arguments: list[Instance]) -> list[Any]:
        if not arguments:
            return []
        if isinstance(stage, ModelStage):
            return self._models.run(stage, arguments)
        function = self._functions[stage.function]
        if stage.batch_size is None:
            return [_run_one(stage, function, instance) for instance in arguments]
        size = stage.batch_size or len(arguments)
        results: list[Any] = []
        for start in range(0, len(arguments), size):
            results += _run_batch(stage, function, arguments[start : start + size])
        return results


def describe_error(where: str, error: Exception) -> ErrorWire:
    """Returns an instance's exception as its request's error; one that nobody foresaw is printed with its lines."""
    if isinstance(error, ServableError):
        return ErrorWire(error.code, error.message)
    traceback.print_exception(error)
    return ErrorWire("internal", f"{where} failed: {type(error).__name__}: {error}")


def _read(made: Mapping[int, list[Any]], value: Value, index: int) -> Any:
    return made[value.stage][index][value.output]


def _run_one(stage: FunctionStage, function: Callable[..., Any], instance: Instance) -> Any:
    try:
        result = function(*instance)
        if stage.streams:
            return StreamedItems(stage.function, iter(result), stage.outputs)
        return _outputs(stage.function, result, stage.outputs)
    except (Exception, SystemExit) as error:
        return _failed(stage.function, error)


def _run_batch(stage: FunctionStage, function: Callable[..., Any], instances: list[Instance]) -> list[Any]:
    results: list[Any] = []
    try:
        for result in function(instances):
            if len(results) == len(instances):
                raise ValueError(f"it gave more results than the {len(instances)} instances it got")
            results.append(_result(stage, result))
        if len(results) < len(instances):
            raise ValueError(f"it gave {len(results)} results for {len(instances)} instances")
    except (Exception, SystemExit) as error:
        failure = _failed(stage.function, error)
        if len(results) == len(instances):
            return [failure] * len(instances)
        results += [failure] * (len(instances) - len(results))
    return results


def _result(stage: FunctionStage, result: Any) -> Any:
    if isinstance(result, Exception):
        return _failed(stage.function, result)
    try:
        return _outputs(stage.function, result, stage.outputs)
    except ServableError as error:
        return error


def _outputs(function: str, result: Any, count: int) -> Instance:
    if count == 1:
        return (result,)
    if not isinstance(result, tuple | list) or len(result) != count:
        got = f"{len(result)} values" if isinstance(result, tuple | list) else type(result).__name__
        raise ServableError("internal", f"Stage '{function}' returned {got}; it has {count} outputs.")
    return tuple(result)


def _failed(function: str, error: BaseException) -> ServableError:
    if isinstance(error, ServableError):
        return error
    traceback.print_exception(error)
    return ServableError("internal", f"Stage '{function}' failed: {type(error).__name__}: {error}")

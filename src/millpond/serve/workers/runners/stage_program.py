"""Runs a servable's methods: instances out of requests, stage after stage, responses in the requests' order.

Arguments from `backends.stages`: `loader` ("package.module:function"), `parameters`, `folder`, `version`. An instance
that fails does so alone; a request of several instances fails with its first failure.
"""

from __future__ import annotations

import importlib
import traceback
from dataclasses import dataclass
from typing import Any

import numpy as np

from millpond.serve.backends.stage_graph import MethodGraph, StageProgram
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.tensors import Tensor, TensorSpec, datatype_of
from millpond.serve.workers.execution import Execution
from millpond.serve.workers.host import Host
from millpond.serve.workers.runners.instance_values import check_input, to_array
from millpond.serve.workers.runners.stage_runs import StageRuns, StreamedItems, describe_error
from millpond.serve.workers.wire import ErrorWire


def load(host: Host, arguments: dict[str, Any]) -> StageRunner:
    """Finds the loader, lets it load the program, and checks that.

    Raises:
        ServableError: There is no such loader, or the servable cannot be loaded.
    """
    module_name, _, function_name = arguments["loader"].partition(":")
    try:
        loader = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ServableError("internal", f"The loader '{arguments['loader']}' cannot be imported: {error}.") from error
    program = loader(arguments["parameters"], arguments["folder"], arguments["version"])
    if not isinstance(program, StageProgram) or not program.methods:
        raise ServableError("internal", f"The loader '{arguments['loader']}' returned no methods.")
    for method in program.methods:
        try:
            method.check()
        except ValueError as error:
            raise ServableError("internal", f"The servable makes no sense: {error}.") from None
    return StageRunner(host, program)


@dataclass(slots=True)
class _Share:
    """The instances of one request, and what became of them."""

    request: int
    rows: int
    is_batch: bool
    results: list[Any]


class StageRunner:
    """A loaded program."""

    def __init__(self, host: Host, program: StageProgram) -> None:
        self._program = program
        self._methods = {method.name: method for method in program.methods}
        self._runs = StageRuns(host, program.functions)

    def info(self) -> dict[str, Any]:
        """Returns how the methods look from outside."""
        return {
            "max_batch_size": self._program.max_batch_size,
            "num_workers": self._program.num_workers,
            "methods": [
                {
                    "name": method.name,
                    "inputs": [_plain(spec) for spec in method.inputs],
                    "outputs": [_plain(spec) for spec in method.outputs],
                    "streams": method.streams,
                    "documentation": self._program.documentation.get(method.name, ""),
                }
                for method in self._program.methods
            ],
        }

    def execute(self, execution: Execution) -> None:
        """Runs a batch, whose requests may be of different methods."""
        by_method: dict[str, list[int]] = {}
        for index, request in enumerate(execution.requests):
            by_method.setdefault(request.method or self._program.methods[0].name, []).append(index)
        for name, indexes in by_method.items():
            method = self._methods.get(name)
            if method is None:
                error = ErrorWire("not_found", f"There is no method '{name}'.")
                for index in indexes:
                    execution.respond(index, error=error)
            else:
                self._execute(execution, method, indexes)
        execution.finish()

    def close(self) -> None:
        """Lets the program free what it holds."""
        if self._program.close is not None:
            try:
                self._program.close()
            except (Exception, SystemExit):
                traceback.print_exc()

    def _execute(self, execution: Execution, method: MethodGraph, indexes: list[int]) -> None:
        instances: list[tuple[Any, ...]] = []
        shares: list[_Share] = []
        for index in indexes:
            try:
                arrays = self._arrays(execution, method, index)
                is_batch = self._program.max_batch_size > 0 and not execution.requests[index].method
                rows = next((len(array) for array in arrays if array is not None), 1) if is_batch else 1
                if method.streams and rows != 1:
                    raise ServableError("invalid_argument", f"Method '{method.name}' streams: send one instance.")
                made = [self._instance(method, arrays, row if is_batch else None) for row in range(rows)]
            except Exception as error:
                execution.respond(index, error=describe_error(f"Method '{method.name}'", error))
            else:
                shares.append(_Share(index, rows, is_batch, []))
                instances += made
        results = self._runs.run(method, instances)
        at = 0
        for share in shares:
            share.results = results[at : at + share.rows]
            at += share.rows
        del instances, results
        for share in shares:
            self._respond(execution, method, share)

    def _arrays(self, execution: Execution, method: MethodGraph, index: int) -> list[Any]:
        given = {tensor.name: tensor for tensor in execution.inputs(index)}
        arrays: list[Any] = []
        for spec in method.inputs:
            tensor = given.pop(spec.name, None)
            if tensor is None and not spec.optional:
                raise ServableError("invalid_argument", f"Input '{spec.name}' of method '{method.name}' is missing.")
            arrays.append(None if tensor is None else tensor.array)
            if tensor is not None and execution.requests[index].method:
                check_input(tensor, spec)
        if given:
            raise ServableError("invalid_argument", f"Method '{method.name}' has no input '{next(iter(given))}'.")
        return arrays

    def _instance(self, method: MethodGraph, arrays: list[Any], row: int | None) -> tuple[Any, ...]:
        values = tuple(array if array is None or row is None else array[row] for array in arrays)
        prepare = self._program.prepare.get(method.name)
        return values if prepare is None else prepare(values)

    def _respond(self, execution: Execution, method: MethodGraph, share: _Share) -> None:
        where = f"Method '{method.name}'"
        failure = next((result for result in share.results if isinstance(result, Exception)), None)
        if failure is not None:
            execution.respond(share.request, error=describe_error(where, failure))
            return
        try:
            if isinstance(share.results[0], StreamedItems):
                self._stream(execution, method, share)
                return
            rows = [
                [to_array(value, spec) for value, spec in zip(result, method.outputs, strict=True)]
                for result in share.results
            ]
            execution.respond(share.request, _outputs(method, rows, is_batch=share.is_batch))
        except Exception as error:
            if execution.is_open(share.request):
                execution.respond(share.request, error=describe_error(where, error))

    def _stream(self, execution: Execution, method: MethodGraph, share: _Share) -> None:
        items: StreamedItems = share.results[0]
        try:
            for item in items:
                row = [to_array(value, spec) for value, spec in zip(item, method.outputs, strict=True)]
                execution.respond(share.request, _outputs(method, [row], is_batch=share.is_batch), final=False)
                execution.flush()
                if execution.is_cancelled(share.request):
                    break
        finally:
            items.close()
        execution.respond(share.request)
        execution.flush()


def _outputs(method: MethodGraph, rows: list[list[Any]], *, is_batch: bool) -> list[Tensor]:
    outputs = []
    for number, spec in enumerate(method.outputs):
        arrays = [row[number] for row in rows]
        if is_batch and len({array.shape for array in arrays}) > 1:
            shapes = sorted({str(list(array.shape)) for array in arrays})
            raise ServableError(
                "internal", f"Output '{spec.name}' differs in shape between instances: {', '.join(shapes)}."
            )
        array = np.stack(arrays) if is_batch else arrays[0]
        outputs.append(Tensor(spec.name, spec.datatype or datatype_of(array), array))
    return outputs


def _plain(spec: TensorSpec) -> list[Any]:
    return [spec.name, spec.datatype, list(spec.dims), spec.optional]

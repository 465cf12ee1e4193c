"""Loads a servable in a worker: runs its `servable_config.py`, loads its models, and makes a `StageProgram` of both.

The stages back end calls `load_program`. All that is wrong is a `ServableError` with the original's text, which the
gateway's `start_servables` raises again as `RuntimeError`.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from millpond.compat.mindspore_serving.alias import install_alias
from millpond.compat.mindspore_serving.server.register.recording import (
    DeclaredModel,
    Method,
    Recording,
    Source,
    Stage,
    record,
)
from millpond.compat.mindspore_serving.server.worker.functions import Instances, wrap_function
from millpond.compat.mindspore_serving.server.worker.graphs import find_file, load_graph
from millpond.compat.mindspore_serving.server.worker.models import LoadedModel
from millpond.serve.backends.stage_graph import METHOD_INPUTS, FunctionStage, MethodGraph, StageProgram, Value
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.tensors import TensorSpec

CONFIG_FILE = "servable_config.py"
NUM_WORKERS = "mindspore_num_workers"
_MAX_FUNCTION_BATCH = 8  # a stage whose batch size is the server's choice, without a model: small, to use all replicas


def load_program(parameters: Mapping[str, str], folder: str, version: int) -> StageProgram:
    """Loads the servable in `folder`.

    Raises:
        ServableError: It cannot be loaded; the text says why.
    """
    path = Path(folder)
    num_threads = max(1, (os.cpu_count() or 1) // int(parameters.get(NUM_WORKERS, "1")))
    install_alias()
    with record(path.name) as recording:
        _run_config(path)
        if not recording.methods:
            raise _refuse("There is no method registered for servable")
        try:
            models = {
                key: _load_model(model, path, version, model.num_threads or num_threads)
                for key, model in recording.models.items()
            }
        except RuntimeError as error:
            raise _refuse(str(error)) from None
        _connect(recording, models)
        return _make_program(recording, models)


def _refuse(message: str) -> ServableError:
    return ServableError("invalid_argument", message)


def _run_config(folder: Path) -> None:
    """Runs the servable's file as a module of a package, so that it can import what lies beside it."""
    package = ModuleType(f"mindspore_servable_{folder.name}")
    package.__path__ = [str(folder)]
    sys.modules[package.__name__] = package
    sys.path.append(str(folder.parent))
    name = f"{package.__name__}.servable_config"
    spec = importlib.util.spec_from_file_location(name, folder / CONFIG_FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except RuntimeError as error:
        raise _refuse(str(error)) from None
    except Exception as error:
        line = traceback.extract_tb(error.__traceback__)[-1].lineno
        raise _refuse(
            f"Load servable config failed, file '{CONFIG_FILE}' of servable '{folder.name}', line {line}: "
            f"{type(error).__name__}: {error}"
        ) from None


def _load_model(model: DeclaredModel, folder: Path, version: int, num_threads: int) -> LoadedModel:
    where = f"servable directory: '{folder.parent}', servable name: '{folder.name}'"
    versions = folder / str(version)
    if not versions.is_dir():
        raise RuntimeError(
            f"Start servable failed: There is no specified version directory of models, specified version number: "
            f"{version}, {where}"
        )
    try:
        graphs = [load_graph(find_file(versions, file), num_threads) for file in model.files]
    except RuntimeError as error:
        raise RuntimeError(
            f"Load model failed, {where}, model file: '{list(model.files)}', version number {version}, load error "
            f"details: {error}"
        ) from None
    return LoadedModel(model, graphs)


def _connect(recording: Recording, models: Mapping[str, LoadedModel]) -> None:
    def run_model(key: str, instances: Instances, subgraph: int) -> tuple[tuple[Any, ...], ...]:
        return models[key].call(instances, subgraph)

    recording.run_model = run_model


def _make_program(recording: Recording, models: Mapping[str, LoadedModel]) -> StageProgram:
    functions = {name: wrap_function(function) for name, function in recording.functions.items()}
    functions.update({key: model.run_stage for key, model in models.items()})
    methods = tuple(_make_graph(method, recording, models) for method in recording.methods.values())
    sizes = [
        stage.batch_size or _MAX_FUNCTION_BATCH
        for method in methods
        for stage in method.stages
        if isinstance(stage, FunctionStage)
    ]
    return StageProgram(methods, functions, max_batch_size=max(sizes, default=1))


def _make_graph(method: Method, recording: Recording, models: Mapping[str, LoadedModel]) -> MethodGraph:
    largest = max((models[stage.name].batch_size for stage in method.stages if stage.kind == "model"), default=0)
    return MethodGraph(
        name=method.name,
        inputs=_any_tensors(method.inputs),
        outputs=_any_tensors(method.outputs),
        stages=tuple(_make_stage(stage, models, largest) for stage in method.stages),
        results=tuple(_value(source) for source in method.returns),
    )


def _make_stage(stage: Stage, models: Mapping[str, LoadedModel], largest: int) -> FunctionStage:
    batch_size = models[stage.name].batch_size if stage.kind == "model" else stage.batch_size or largest
    return FunctionStage(
        stage.name, tuple(_value(source) for source in stage.inputs), stage.num_outputs, batch_size=batch_size
    )


def _any_tensors(names: Sequence[str]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, "", ()) for name in names)


def _value(source: Source) -> Value:
    stage, index = source
    return Value(METHOD_INPUTS if stage == 0 else stage - 1, index)

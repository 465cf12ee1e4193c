"""`PythonBackend`: `TritonPythonModel` files in worker processes.

Completes a configuration with the model's `auto_complete_config` and hands the model what Triton would. What happens in
the worker is `workers.runners.python_model`'s.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from millpond.serve.backends.model_files import ModelFiles
from millpond.serve.backends.worker_instance import (
    DECOUPLED_CONCURRENCY,
    WorkerInstance,
    WorkerSurroundings,
    instance_name,
    start_instance,
)
from millpond.serve.repository.triton_config import config_from_json, to_document
from millpond.serve.servables.backend import ModelFolder
from millpond.serve.servables.config import InstanceGroup, ServableConfig
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.tensors import TensorSpec
from millpond.serve.workers.reshapes import plain_reshapes
from millpond.serve.workers.worker import WorkerSpec

DEFAULT_FILE = "model.py"
_PLAIN_CLASS = re.compile(r"^class\s+TritonPythonModel\s*(\(\s*(object\s*)?\))?\s*:", re.MULTILINE)
_KINDS = {"cpu": "CPU", "gpu": "GPU", "model": "MODEL", "auto": "CPU"}


class PythonBackend:
    """Runs Python model files.

    Args:
        surroundings: Limits, and who answers calls of models.
    """

    name = "python"

    def __init__(self, surroundings: WorkerSurroundings) -> None:
        self._surroundings = surroundings

    async def complete(self, config: ServableConfig, folder: ModelFolder) -> ServableConfig:
        """Asks the model's `auto_complete_config`, when it may have one.

        Raises:
            ServableError: The model cannot be imported, or contradicts the configuration.
        """
        if "EXECUTION_ENV_PATH" in config.parameters:
            raise ServableError(
                "unsupported",
                "Parameter EXECUTION_ENV_PATH is not supported: install what the model needs beside the server.",
            )
        files = ModelFiles(folder)
        try:
            source = files.path / str(folder.version) / _file(config)
            if not source.is_file():
                raise ServableError("internal", f"There is no file '{folder.version}/{_file(config)}'.")
            if not may_complete(source):
                return config
            arguments = {**_arguments(config, files.path, folder.version), "document": json.dumps(to_document(config))}
            spec = WorkerSpec(config.name, "python_complete", arguments, folder.version)
            worker = self._surroundings.worker(spec, config.name)
            try:
                info = await worker.start()
            finally:
                await worker.close()
        finally:
            files.close()
        document: str | None = info["document"]
        return config if document is None else completed(config, json.loads(document))

    async def load(
        self, config: ServableConfig, folder: ModelFolder, group: InstanceGroup, number: int
    ) -> WorkerInstance:
        """Starts a worker with the model in it.

        Raises:
            ServableError: The model cannot be imported or initialized.
        """
        files = ModelFiles(folder)
        name = instance_name(config, group, number)
        arguments = {
            **_arguments(config, files.path, folder.version),
            "instance": name,
            "decoupled": config.decoupled,
            "outputs": [spec.name for spec in config.outputs],
            "reshapes": plain_reshapes(config),
            "initialize": {
                "model_config": json.dumps(to_document(config)),
                "model_instance_kind": _KINDS[group.kind],
                "model_instance_name": name,
                "model_instance_device_id": str(group.devices[number % len(group.devices)] if group.devices else 0),
                "model_repository": str(files.path),
                "model_version": str(folder.version),
                "model_name": config.name,
            },
        }
        worker = self._surroundings.worker(WorkerSpec(name, "python", arguments, folder.version), config.name)
        return await start_instance(worker, files, DECOUPLED_CONCURRENCY if config.decoupled else 1)


def may_complete(source: Path) -> bool:
    """Whether a model file may have an `auto_complete_config`: False only when its text rules it out."""
    text = source.read_text(errors="replace")
    return "auto_complete_config" in text or _PLAIN_CLASS.search(text) is None


def completed(config: ServableConfig, document: dict[str, Any]) -> ServableConfig:
    """Returns the configuration with what a model filled in; what was read from files stays."""
    filled = config_from_json(document, name=config.name)
    return replace(
        config,
        inputs=filled.inputs,
        outputs=tuple(_labelled(spec, config.outputs) for spec in filled.outputs),
        max_batch_size=filled.max_batch_size,
        dynamic_batching=filled.dynamic_batching,
        decoupled=filled.decoupled,
        document=filled.document,
    )


def _labelled(spec: TensorSpec, known: tuple[TensorSpec, ...]) -> TensorSpec:
    return next((replace(spec, labels=other.labels) for other in known if other.name == spec.name), spec)


def _file(config: ServableConfig) -> str:
    return config.default_model_filename or DEFAULT_FILE


def _arguments(config: ServableConfig, path: Path, version: int) -> dict[str, Any]:
    return {"folder": str(path), "version": version, "file": _file(config), "name": config.name}

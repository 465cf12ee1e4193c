"""Runs a model's `auto_complete_config` and reports the completed configuration; executes nothing.

Arguments from `backends.python`: `folder`, `version`, `file`, `name` and `document` (the configuration as JSON).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from millpond.compat import triton_python_backend_utils as api
from millpond.serve.servables.errors import ServableError
from millpond.serve.workers.execution import Execution
from millpond.serve.workers.host import Host
from millpond.serve.workers.runners.python_source import PythonSource


def load(host: Host, arguments: dict[str, Any]) -> CompletedConfig:
    """Imports the model and asks it for its configuration.

    Raises:
        ServableError: It contradicts what the configuration says already, or failed.
    """
    source = PythonSource(Path(arguments["folder"]), arguments["version"], arguments["file"], arguments["name"])
    api.install()
    api.CONNECTION.connect(host, source.version_folder)
    model_class = getattr(source.load(), "TritonPythonModel", None)
    if model_class is None:
        raise ServableError("internal", f"'{arguments['file']}' has no class TritonPythonModel.")
    if not hasattr(model_class, "auto_complete_config"):
        return CompletedConfig(None)
    try:
        completed = model_class.auto_complete_config(api.ModelConfig(arguments["document"]))
    except (Exception, SystemExit) as error:
        raise ServableError("internal", source.describe(error)) from error
    if not isinstance(completed, api.ModelConfig):
        text = (
            f"auto_complete_config function in model '{arguments['name']}' must return a valid pb.ModelConfig object."
        )
        raise ServableError("internal", text)
    return CompletedConfig(json.dumps(completed.as_dict()))


class CompletedConfig:
    """What the model said, None when it has nothing to say."""

    def __init__(self, document: str | None) -> None:
        self._document = document

    def info(self) -> dict[str, Any]:
        """Returns the configuration."""
        return {"document": self._document}

    def execute(self, execution: Execution) -> None:
        """Refuses: the process only completes a configuration."""
        raise ServableError("internal", "This process does not execute requests.")

    def close(self) -> None:
        """Has nothing to free."""

"""Loading and unloading other models from inside a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from millpond.compat.triton_python_backend_utils.connection import CONNECTION
from millpond.compat.triton_python_backend_utils.errors import TritonModelException
from millpond.serve.servables.errors import ServableError


def load_model(model_name: str, files: Mapping[str, bytes] | None = None, config: str | None = None) -> None:
    """Loads a model of the repository.

    Args:
        model_name: Which one.
        files: Contents by "file:<path in the model's folder>"; they win over the repository's.
        config: A configuration as JSON that wins over the repository's.

    Raises:
        TritonModelException: It cannot be loaded.
    """
    contents = {path.removeprefix("file:"): bytes(data) for path, data in (files or {}).items()}
    _ask("load", {"name": model_name, "config": config or None, "files": contents})


def unload_model(model_name: str) -> None:
    """Unloads a model of the repository.

    Raises:
        TritonModelException: The repository refused.
    """
    _ask("unload", {"name": model_name})


def is_model_ready(model_name: str, model_version: str = "") -> bool:
    """Whether a model, or one version of it, answers requests now."""
    version = int(model_version) if model_version else None
    return bool(_ask("ready", {"name": model_name, "version": version}))


def get_model_dir() -> str:
    """Returns the folder of this model's version."""
    return str(CONNECTION.model_dir)


def _ask(what: str, arguments: dict[str, Any]) -> Any:
    try:
        return CONNECTION.host.ask(what, arguments)
    except ServableError as error:
        raise TritonModelException(error.message) from None

"""`read_config`: a model's configuration from its folder, from a load request, or guessed from its files.

Only the repository calls it. The formats themselves are `triton_config`'s.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from millpond.serve.repository.layout import check_relative, find_versions, read_inside
from millpond.serve.repository.triton_config import config_from_json, parse_config_text
from millpond.serve.servables.config import ServableConfig
from millpond.serve.servables.errors import ServableError

CONFIG_FILE = "config.pbtxt"
_BACKEND_OF = {
    "model.py": "python",
    "servable.py": "stages",
    "model.onnx": "onnxruntime",
    "model.pt": "pytorch",
    "model.pt2": "pytorch",
    "model.json": "vllm",
}


@dataclass(frozen=True, slots=True)
class ConfigSource:
    """Where a configuration may come from.

    Attributes:
        folder: The model's; None when it is only in the request.
        override: The request's configuration; wins over the folder's.
        files: The request's files.
        custom_name: Of a file in the folder's `configs` that is preferred, without `.pbtxt`; "" is none.
        may_guess: Whether a model without a configuration gets one from its files.
    """

    folder: Path | None
    override: Mapping[str, object] | str | None = None
    files: Mapping[str, bytes] = field(default_factory=dict)
    custom_name: str = ""
    may_guess: bool = True


def read_config(name: str, source: ConfigSource) -> ServableConfig:
    """Reads the configuration of model `name`.

    Raises:
        ServableError: There is none, or it is not one, or it is another model's.
    """

    def read_file(path: str) -> bytes:
        if path in source.files:
            return source.files[path]
        if source.folder is None:
            raise ServableError("invalid_argument", f"file '{path}' is not among the files of the request")
        return read_inside(source.folder, path)

    if source.override is not None:
        document = _as_document(source.override)
        if not document.get("backend") and not document.get("platform"):
            document = {**_guess(name, source), **document}
        config = config_from_json(document, name=name, read_file=read_file)
    else:
        text = _config_text(source)
        if text is not None:
            config = parse_config_text(text, CONFIG_FILE, name=name, read_file=read_file)
        else:
            config = config_from_json(_guess(name, source), name=name, read_file=read_file)
    if config.name != name:
        raise ServableError(
            "invalid_argument",
            f"unexpected directory name '{name}' for model '{config.name}', directory name must equal model name",
        )
    if config.default_model_filename:
        check_relative(config.default_model_filename)
    return config


def _as_document(override: Mapping[str, object] | str) -> Mapping[str, object]:
    if not isinstance(override, str):
        return override
    try:
        document = json.loads(override)
    except ValueError as error:
        raise ServableError("invalid_argument", f"the configuration is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise ServableError("invalid_argument", "the configuration is not a JSON object")
    return document


def _config_text(source: ConfigSource) -> str | None:
    if source.folder is None:
        return None
    for path in (f"configs/{source.custom_name}.pbtxt" if source.custom_name else "", CONFIG_FILE):
        if path and (source.folder / path).is_file():
            try:
                return read_inside(source.folder, path).decode()
            except UnicodeDecodeError as error:
                raise ServableError("invalid_argument", f"{path} is not UTF-8 text") from error
    return None


def _guess(name: str, source: ConfigSource) -> dict[str, object]:
    if source.folder is not None and source.may_guess:
        for version in reversed(find_versions(source.folder)):
            for file, backend in _BACKEND_OF.items():
                if (source.folder / str(version) / file).exists():
                    return {"name": name, "backend": backend}
    if source.override is not None:
        return {}
    raise ServableError("not_found", f"model configuration is not provided for model '{name}'")

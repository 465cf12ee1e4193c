"""Finds the model a config asks for, fetching it when it is a name. Used by the client and by `LLM`; no torch."""

from __future__ import annotations

from dataclasses import replace

from millpond.base.progress import Progress
from millpond.config.schema import EngineConfig
from millpond.inference.weights.catalog import DEFAULT_MODEL, resolve_model


def locate_model(config: EngineConfig, progress: Progress | None = None) -> tuple[EngineConfig, str]:
    """Returns the config with the model it asks for written out, and the directory or file that it stands for.

    A draft model's name is replaced by its directory or file.

    Raises:
        ConfigError: There is no such model.
        CheckpointError: It could not be fetched.
    """
    asked = config.model.path or DEFAULT_MODEL
    draft = config.speculation.draft_model
    if draft and config.speculation.mode != "off":
        path = resolve_model(draft, progress=progress)
        config = replace(config, speculation=replace(config.speculation, draft_model=path))
    return replace(config, model=replace(config.model, path=asked)), resolve_model(asked, progress=progress)

"""Mistral: a Llama whose every layer may look back only `sliding_window` tokens."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from millpond.api.model_spec import ModelSpec
from millpond.inference.models import llama
from millpond.inference.models.blocks import Family
from millpond.inference.models.config_fields import ConfigFields
from millpond.inference.models.layer_names import make_llama_weights


def make_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Llama plus the window (none when the config says null)."""
    spec = llama.make_spec({"num_key_value_heads": 8, **config}, family="mistral")
    if config.get("sliding_window") is None:
        return spec
    window = ConfigFields(config).size("sliding_window")
    return replace(spec, sliding_window=window, sliding_layers=(True,) * spec.num_layers)


FAMILY = Family("mistral", ("mistral",), make_spec, make_llama_weights)

"""Qwen3: a Llama with an RMS norm on each q and k head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from millpond.api.model_spec import ModelSpec
from millpond.inference.models import llama
from millpond.inference.models.blocks import Family
from millpond.inference.models.layer_names import make_llama_weights
from millpond.inference.models.qwen2 import add_window


def make_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Llama plus q and k norms; head_dim is 128 when the config does not say."""
    spec = llama.make_spec({"head_dim": 128, **config}, family="qwen3")
    return add_window(replace(spec, qk_norm=True), config)


FAMILY = Family("qwen3", ("qwen3",), make_spec, make_llama_weights)

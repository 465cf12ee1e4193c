"""Qwen2 and Qwen2.5: a Llama with biases on q, k and v, and a window on the upper layers when it is switched on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from millpond.api.model_spec import ModelSpec
from millpond.inference.models import llama
from millpond.inference.models.blocks import Family
from millpond.inference.models.config_fields import ConfigFields
from millpond.inference.models.layer_names import make_llama_weights


def add_window(spec: ModelSpec, config: Mapping[str, Any]) -> ModelSpec:
    """Qwen's window rule: `layer_types` where it is given, else the layers from `max_window_layers` up."""
    fields = ConfigFields(config)
    if not fields.flag("use_sliding_window", False) or config.get("sliding_window") is None:
        return spec
    kinds = config.get("layer_types")
    first = int(fields.number("max_window_layers", 28))
    sliding = (
        tuple(kind == "sliding_attention" for kind in kinds)
        if kinds
        else tuple(i >= first for i in range(spec.num_layers))
    )
    return replace(spec, sliding_window=fields.size("sliding_window"), sliding_layers=sliding)


def make_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Llama plus q, k, v biases and the window."""
    spec = llama.make_spec({"attention_bias": False, **config}, family="qwen2")
    return add_window(replace(spec, qkv_bias=True, attention_out_bias=False), config)


FAMILY = Family("qwen2", ("qwen2",), make_spec, make_llama_weights)

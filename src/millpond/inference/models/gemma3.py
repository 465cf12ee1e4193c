"""Gemma 3 (text): norms stored as w-1, norms after each sub-layer, q and k norms, five sliding layers to a full one."""

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
    """Spec of a Gemma 3 text config. Sliding layers have their own rotary base, without scaling."""
    config = {"head_dim": 256, "hidden_act": config.get("hidden_activation") or "gelu_pytorch_tanh", **config}
    config["hidden_act"] = config.get("hidden_activation") or config["hidden_act"]
    fields = ConfigFields(config)
    spec = llama.make_spec(config, family="gemma3")
    kinds = config.get("layer_types")
    pattern = int(fields.number("sliding_window_pattern", fields.number("_sliding_window_pattern", 6)))
    sliding = (
        tuple(kind == "sliding_attention" for kind in kinds)
        if kinds
        else tuple((i + 1) % pattern != 0 for i in range(spec.num_layers))
    )
    local = ConfigFields({**config, "rope_scaling": None, "rope_theta": fields.number("rope_local_base_freq", 10000.0)})
    return replace(
        spec,
        norm_weight_offset=1.0,
        qk_norm=True,
        post_norms=True,
        embedding_scale=fields.size("hidden_size") ** 0.5,
        attention_scale=fields.number("query_pre_attn_scalar", 256.0) ** -0.5,
        rope=fields.rope(spec.head_dim, 1_000_000.0, "full_attention"),
        rope_local=local.rope(spec.head_dim, 10000.0, "sliding_attention"),
        sliding_window=fields.size("sliding_window", 4096),
        sliding_layers=sliding,
        tie_embeddings=fields.flag("tie_word_embeddings", True),
    )


FAMILY = Family("gemma3", ("gemma3_text", "gemma3"), make_spec, make_llama_weights)

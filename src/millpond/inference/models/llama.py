"""Llama 1 to 3.x and the models that are Llamas by another name (SmolLM2, TinyLlama, Yi)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from millpond.api.model_spec import ModelSpec
from millpond.inference.models.blocks import Family
from millpond.inference.models.config_fields import ConfigFields
from millpond.inference.models.layer_names import make_llama_weights


def make_spec(config: Mapping[str, Any], *, family: str = "llama") -> ModelSpec:
    """Spec of a Llama-shaped config; the neighbouring family files start from it."""
    f = ConfigFields(config)
    hidden, heads = f.size("hidden_size"), f.size("num_attention_heads")
    head_dim = f.size("head_dim", hidden // heads)
    has_bias = f.flag("attention_bias", False)
    return ModelSpec(
        family=family,
        vocab_size=f.size("vocab_size"),
        hidden_size=hidden,
        num_layers=f.size("num_hidden_layers"),
        num_heads=heads,
        num_kv_heads=f.size("num_key_value_heads", heads),
        head_dim=head_dim,
        intermediate_size=f.size("intermediate_size"),
        max_position=f.size("max_position_embeddings", 2048),
        norm_eps=f.number("rms_norm_eps", 1e-6),
        activation=f.activation("hidden_act", "silu"),
        rope=f.rope(head_dim, 10000.0),
        qkv_bias=has_bias,
        attention_out_bias=has_bias,
        mlp_bias=f.flag("mlp_bias", False),
        attention_scale=head_dim**-0.5,
        tie_embeddings=f.flag("tie_word_embeddings", False),
        bos_token_id=f.token_id("bos_token_id"),
        eos_token_ids=f.token_ids("eos_token_id"),
    )


FAMILY = Family("llama", ("llama",), make_spec, make_llama_weights)

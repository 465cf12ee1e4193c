"""Tiny random checkpoints of every family, made with `transformers`, whose own forward is the oracle."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

VOCAB = 320
SHAPE: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 96,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
YARN_ROPE = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128}
GPT2 = {
    "vocab_size": VOCAB,
    "n_embd": 96,
    "n_layer": 3,
    "n_head": 3,
    "n_positions": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
BLOOM = {
    "vocab_size": VOCAB,
    "hidden_size": 96,
    "n_layer": 3,
    "n_head": 3,
    "seq_length": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GEMMA_LAYERS = ["sliding_attention", "sliding_attention", "full_attention"]

# Name -> (configuration class, its arguments). One variant a thing that a family can do.
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {**SHAPE, "tie_word_embeddings": False}),
    "llama-tied": ("LlamaConfig", {**SHAPE, "tie_word_embeddings": True}),
    "llama-rope3": ("LlamaConfig", {**SHAPE, "rope_parameters": LLAMA3_ROPE}),
    "llama-yarn": ("LlamaConfig", {**SHAPE, "rope_parameters": YARN_ROPE}),
    "llama-bias": ("LlamaConfig", {**SHAPE, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("MistralConfig", {**SHAPE, "sliding_window": 40}),
    "qwen2": (
        "Qwen2Config",
        {k: v for k, v in SHAPE.items() if k != "head_dim"} | {"num_attention_heads": 3, "num_key_value_heads": 1},
    ),
    "qwen3": ("Qwen3Config", dict(SHAPE)),
    "gemma3": (
        "Gemma3TextConfig",
        {
            **SHAPE,
            "sliding_window": 40,
            "layer_types": GEMMA_LAYERS,
            "query_pre_attn_scalar": 24,
            "tie_word_embeddings": True,
        },
    ),
    "gpt2": ("GPT2Config", GPT2),
    "bloom": ("BloomConfig", BLOOM),
    "bloom-heads": ("BloomConfig", {**BLOOM, "hidden_size": 192, "n_head": 6}),
}


def make_model(variant: str, seed: int = 0) -> PreTrainedModel:
    """A random model in float32; every parameter is moved off its initial value so that none is a no-op."""
    name, arguments = VARIANTS[variant]
    torch.manual_seed(seed)
    config = getattr(transformers, name)(**arguments)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.05 if parameter.dim() > 1 else 0.2))
    return model.eval()


def config_dict(model: PreTrainedModel) -> dict[str, Any]:
    """The config as config.json would hold it."""
    return dict(model.config.to_dict())

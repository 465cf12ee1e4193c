"""From a GGUF file's metadata to the config.json its model had before it was converted.

One function a family. GGUF leaves out what llama.cpp has built in (Gemma's pattern of sliding layers, its local
rotary base); those facts stand here. Reads numbers, the names of tensors and Llama 3's factor tensor; no torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from millpond.inference.weights.base import file_error, tensor_error
from millpond.inference.weights.gguf_families import ROPE_FACTORS
from millpond.inference.weights.gguf_file import GgufFile

MAX_LAYERS = 4096
GEMMA3_PATTERN = 6  # every sixth layer attends to everything
GEMMA3_LOCAL_THETA = 10_000.0
GEMMA3_27B_LAYERS = 62  # the one size whose queries are scaled by hidden_size / heads
LLAMA3_ORIGINAL_CONTEXT = 8192
LLAMA3_LOW_FACTOR, LLAMA3_HIGH_FACTOR = 1.0, 4.0


def make_config(file: GgufFile) -> dict[str, Any]:
    """Returns the config for `file`.

    Raises:
        CheckpointError: The architecture is not supported, or its metadata is incomplete.
    """
    architecture = file.architecture
    make = _MAKERS.get(architecture)
    if make is None:
        known = ", ".join(sorted(_MAKERS))
        raise file_error(file.path, f"the architecture {architecture[:80]!r} is not supported.", fix=f"Known: {known}.")
    if file.count(f"{architecture}.expert_count", 0):
        raise file_error(file.path, "mixture-of-experts models are not supported.", fix="Take a dense model.")
    if not 1 <= file.count(f"{architecture}.block_count") <= MAX_LAYERS:
        raise file_error(file.path, f"{architecture}.block_count is out of range.", fix="Convert the model again.")
    config = make(file)
    config["vocab_size"] = _vocab_size(file)
    config["tie_word_embeddings"] = "output.weight" not in file.tensors
    for role in ("bos", "eos"):
        token_id = file.token_id(f"tokenizer.ggml.{role}_token_id")
        if token_id is not None:
            config[f"{role}_token_id"] = token_id
    return config


def _vocab_size(file: GgufFile) -> int:
    embedding = file.tensors.get("token_embd.weight")
    if embedding is None:
        reason = "there is no such tensor."
        raise tensor_error(file.path, "token_embd.weight", reason, fix="The file holds no language model.")
    return embedding.shape[0]


def _decoder(file: GgufFile, model_type: str, class_name: str) -> dict[str, Any]:
    """What every family with rotary positions and RMS norms has."""
    prefix = file.architecture
    hidden = file.count(f"{prefix}.embedding_length")
    heads = file.count(f"{prefix}.attention.head_count")
    if heads < 1 or hidden < 1:
        raise file_error(file.path, f"{prefix}: {heads} heads and a width of {hidden} make no model.")
    head_dim = file.count(f"{prefix}.rope.dimension_count", hidden // heads)
    head_dim = file.count(f"{prefix}.attention.key_length", head_dim)
    kv_heads = file.count(f"{prefix}.attention.head_count_kv", heads)
    if kv_heads < 1 or heads % kv_heads or head_dim < 2 or head_dim % 2:
        reason = f"{prefix}: {heads} heads over {kv_heads} key heads of {head_dim} numbers make no model."
        raise file_error(file.path, reason)
    config: dict[str, Any] = {
        "architectures": [class_name],
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": file.count(f"{prefix}.feed_forward_length"),
        "num_hidden_layers": file.count(f"{prefix}.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": file.count(f"{prefix}.context_length"),
        "rms_norm_eps": _rounded(file.number(f"{prefix}.attention.layer_norm_rms_epsilon")),
        "rope_theta": float(file.number(f"{prefix}.rope.freq_base", 10_000.0)),
        "rope_scaling": _rope_scaling(file, prefix),
        "hidden_act": "silu",
    }
    return config


def _llama(file: GgufFile) -> dict[str, Any]:
    name = f"{file.text('general.name', '')} {file.text('general.basename', '')}".casefold()
    is_mistral = "mistral" in name
    model_type, class_name = ("mistral", "MistralForCausalLM") if is_mistral else ("llama", "LlamaForCausalLM")
    config = _decoder(file, model_type, class_name)
    if is_mistral:
        config["sliding_window"] = file.count("llama.attention.sliding_window", 0) or None
    else:
        config["attention_bias"] = "blk.0.attn_q.bias" in file.tensors
        config["mlp_bias"] = "blk.0.ffn_up.bias" in file.tensors
    if ROPE_FACTORS in file.tensors:
        config["rope_scaling"] = _llama3_scaling(file, config["rope_theta"], config["head_dim"])
    return config


def _qwen2(file: GgufFile) -> dict[str, Any]:
    return {**_decoder(file, "qwen2", "Qwen2ForCausalLM"), "use_sliding_window": False}


def _qwen3(file: GgufFile) -> dict[str, Any]:
    config = _decoder(file, "qwen3", "Qwen3ForCausalLM")
    return {**config, "attention_bias": "blk.0.attn_q.bias" in file.tensors, "use_sliding_window": False}


def _gemma3(file: GgufFile) -> dict[str, Any]:
    config = _decoder(file, "gemma3_text", "Gemma3ForCausalLM")
    layers, heads = config["num_hidden_layers"], config["num_attention_heads"]
    scalar = config["head_dim"] if layers != GEMMA3_27B_LAYERS else config["hidden_size"] // heads
    config.pop("hidden_act")
    return {
        **config,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar,
        "sliding_window": file.count("gemma3.attention.sliding_window", 1024),
        "layer_types": [
            "full_attention" if (layer + 1) % GEMMA3_PATTERN == 0 else "sliding_attention" for layer in range(layers)
        ],
        "rope_local_base_freq": float(file.number("gemma3.rope.freq_base_swa", GEMMA3_LOCAL_THETA)),
        "attention_bias": False,
    }


def _gpt2(file: GgufFile) -> dict[str, Any]:
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": file.count("gpt2.embedding_length"),
        "n_layer": file.count("gpt2.block_count"),
        "n_head": file.count("gpt2.attention.head_count"),
        "n_inner": file.count("gpt2.feed_forward_length"),
        "n_positions": file.count("gpt2.context_length"),
        "layer_norm_epsilon": _rounded(file.number("gpt2.attention.layer_norm_epsilon")),
        "activation_function": "gelu_new",
    }


def _bloom(file: GgufFile) -> dict[str, Any]:
    return {
        "architectures": ["BloomForCausalLM"],
        "model_type": "bloom",
        "hidden_size": file.count("bloom.embedding_length"),
        "n_layer": file.count("bloom.block_count"),
        "n_head": file.count("bloom.attention.head_count"),
        "seq_length": file.count("bloom.context_length", 2048),
        "layer_norm_epsilon": _rounded(file.number("bloom.attention.layer_norm_epsilon")),
        "apply_residual_connection_post_layernorm": False,
    }


def _rounded(value: float) -> float:
    """A float32 epsilon such as 9.999999747e-06 as the 1e-05 that was meant."""
    return float(f"{value:.6g}")


def _rope_scaling(file: GgufFile, prefix: str) -> dict[str, Any] | None:
    kind = file.text(f"{prefix}.rope.scaling.type", "none")
    if kind == "none":
        return None
    factor = float(file.number(f"{prefix}.rope.scaling.factor", 1.0))
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor} if factor != 1.0 else None
    if kind == "yarn":
        scaling: dict[str, Any] = {"rope_type": "yarn", "factor": factor}
        original = file.count(f"{prefix}.rope.scaling.original_context_length", 0)
        return {**scaling, "original_max_position_embeddings": original} if original else scaling
    raise file_error(file.path, f"the rotary scaling {kind[:40]!r} is not supported.", fix="Known: linear, yarn.")


def _llama3_scaling(file: GgufFile, theta: float, head_dim: int) -> dict[str, Any]:
    """Llama 3.x files hold one factor a frequency in place of the four numbers that made them: find those again."""
    tensor = file.tensors[ROPE_FACTORS]
    if tensor.kind.name != "F32" or tensor.shape != (head_dim // 2,):
        reason = f"{tensor.kind.name} {list(tensor.shape)} is not a factor a frequency."
        raise tensor_error(file.path, ROPE_FACTORS, reason)
    stored = np.frombuffer(file.mapped.bytes_at(tensor.offset, tensor.size_bytes), dtype="<f4").astype(np.float64)
    factor = float(stored.max())
    frequencies = theta ** -(np.arange(0, head_dim, 2) / head_dim)
    smooth = (LLAMA3_ORIGINAL_CONTEXT * frequencies / (2 * math.pi) - LLAMA3_LOW_FACTOR) / (
        LLAMA3_HIGH_FACTOR - LLAMA3_LOW_FACTOR
    )
    smooth = smooth.clip(0.0, 1.0)
    expected = 1.0 / ((1.0 - smooth) / factor + smooth)
    if not np.allclose(stored, expected, rtol=1e-4):
        reason = "its factors are not those of Llama 3 (1 to 4 over a context of 8192)."
        raise tensor_error(file.path, ROPE_FACTORS, reason, fix="Use the Hugging Face directory of this model.")
    return {
        "rope_type": "llama3",
        "factor": factor,
        "low_freq_factor": LLAMA3_LOW_FACTOR,
        "high_freq_factor": LLAMA3_HIGH_FACTOR,
        "original_max_position_embeddings": LLAMA3_ORIGINAL_CONTEXT,
    }


_MAKERS: dict[str, Callable[[GgufFile], dict[str, Any]]] = {
    "llama": _llama,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "gemma3": _gemma3,
    "gpt2": _gpt2,
    "bloom": _bloom,
}

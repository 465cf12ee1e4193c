"""Tiny GGUF files made in the test with the `gguf` package, by the rules llama.cpp's converter follows.

The other direction of what millpond reads, written from the converter's description: an error in one is not repeated in
the other. Models are random ones of transformers.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers
from gguf import GGMLQuantizationType

SHAPE = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 80}
HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}
MODEL_ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
    "gemma3": gguf.MODEL_ARCH.GEMMA3,
    "gpt2": gguf.MODEL_ARCH.GPT2,
    "bloom": gguf.MODEL_ARCH.BLOOM,
}
FAMILIES = tuple(MODEL_ARCHITECTURES)


def make_model(family: str, **changes: Any) -> transformers.PreTrainedModel:
    """A random model of a family, norms and biases random too."""
    torch.manual_seed(7)
    config = _make_config(family, changes)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.uniform_(-0.5, 0.5)
    return model.eval()


def _make_config(family: str, changes: Mapping[str, Any]) -> transformers.PretrainedConfig:
    if family == "gpt2":
        return transformers.GPT2Config(n_embd=64, n_layer=2, n_head=4, n_positions=128, vocab_size=80, **changes)
    if family == "bloom":
        return transformers.BloomConfig(hidden_size=64, n_layer=2, n_head=4, vocab_size=80, **changes)
    shape = {**SHAPE, **HEADS, "max_position_embeddings": 256, "tie_word_embeddings": False, **changes}
    if family == "gemma3":
        return transformers.Gemma3TextConfig(head_dim=32, sliding_window=16, query_pre_attn_scalar=32, **shape)
    kinds = {
        "llama": transformers.LlamaConfig,
        "mistral": transformers.MistralConfig,
        "qwen2": transformers.Qwen2Config,
        "qwen3": transformers.Qwen3Config,
    }
    if family == "qwen3":
        shape = {"head_dim": 32, **shape}
    return kinds[family](**shape)


def write_gguf(
    path: Path,
    family: str,
    tensors: Mapping[str, np.ndarray | tuple[np.ndarray, GGMLQuantizationType]],
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a file: tensors under their GGUF names (a pair is raw blocks and their type), and raw metadata."""
    architecture = gguf.MODEL_ARCH_NAMES[MODEL_ARCHITECTURES[family]]
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in (metadata or {}).items():
        _add_value(writer, key, value)
    for name, data in tensors.items():
        if isinstance(data, tuple):
            writer.add_tensor(name, data[0], raw_dtype=data[1])
        else:
            writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, list(value))


def convert_model(
    path: Path,
    family: str,
    model: transformers.PreTrainedModel,
    metadata: Mapping[str, Any] | None = None,
    kinds: Sequence[GGMLQuantizationType] = (),
) -> Path:
    """Converts a model as llama.cpp's converter would; matrices take `kinds` in turn, and stay floats without any."""
    architecture = MODEL_ARCHITECTURES[family]
    names = gguf.get_tensor_name_map(architecture, 2)
    tensors: dict[str, np.ndarray | tuple[np.ndarray, GGMLQuantizationType]] = {}
    turns = itertools.cycle(kinds)
    for name, tensor in model.state_dict().items():
        if name.endswith((".attn.bias", ".masked_bias")):
            continue
        if name == "lm_head.weight" and model.config.tie_word_embeddings:
            continue
        converted = names.get_name(name.removeprefix("transformer."), try_suffixes=(".weight", ".bias"))
        assert converted is not None, name
        numbers = _converted(family, name, tensor.numpy(), model.config)
        kind = next(turns) if kinds and numbers.ndim == 2 else None
        tensors[converted] = numbers if kind is None else (gguf.quantize(numbers, kind), kind)
    facts = {**model_metadata(family, model.config), **(metadata or {})}
    return write_gguf(path, family, tensors, facts)


def model_metadata(family: str, config: transformers.PretrainedConfig) -> dict[str, Any]:
    """The metadata a converter writes about the model's shape."""
    prefix = gguf.MODEL_ARCH_NAMES[MODEL_ARCHITECTURES[family]]
    facts: dict[str, Any] = {
        "general.name": f"Tiny {family.title()}",
        f"{prefix}.block_count": config.num_hidden_layers,
        f"{prefix}.embedding_length": config.hidden_size,
        f"{prefix}.attention.head_count": config.num_attention_heads,
        f"{prefix}.vocab_size": config.vocab_size,
    }
    if family in ("gpt2", "bloom"):
        return facts | {
            f"{prefix}.context_length": 128,
            f"{prefix}.feed_forward_length": 4 * config.hidden_size,
            f"{prefix}.attention.layer_norm_epsilon": config.layer_norm_epsilon,
        }
    facts |= {
        f"{prefix}.context_length": config.max_position_embeddings,
        f"{prefix}.feed_forward_length": config.intermediate_size,
        f"{prefix}.attention.head_count_kv": config.num_key_value_heads,
        f"{prefix}.attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        f"{prefix}.rope.freq_base": 500_000.0,
    }
    if family in ("qwen3", "gemma3"):
        facts |= {
            f"{prefix}.attention.key_length": config.head_dim,
            f"{prefix}.attention.value_length": config.head_dim,
        }
    else:
        facts[f"{prefix}.rope.dimension_count"] = config.hidden_size // config.num_attention_heads
    if family == "gemma3":
        facts["gemma3.attention.sliding_window"] = config.sliding_window
    return facts


def _converted(family: str, name: str, data: np.ndarray, config: transformers.PretrainedConfig) -> np.ndarray:
    heads = config.num_attention_heads
    if family in ("llama", "mistral") and ".q_proj." in name:
        return _interleaved(data, heads)
    if family in ("llama", "mistral") and ".k_proj." in name:
        return _interleaved(data, config.num_key_value_heads)
    if family == "gemma3" and name.endswith("norm.weight"):
        return data + 1
    if family == "gpt2" and name.endswith((".c_attn.weight", ".c_proj.weight", ".c_fc.weight")):
        return np.ascontiguousarray(data.T)
    if family == "bloom" and ".query_key_value." in name:
        by_head = data.reshape(heads, 3, -1, *data.shape[1:])
        return np.concatenate([by_head[:, role].reshape(-1, *data.shape[1:]) for role in range(3)])
    return data


def _interleaved(data: np.ndarray, heads: int) -> np.ndarray:
    return data.reshape(heads, 2, -1, *data.shape[1:]).swapaxes(1, 2).reshape(data.shape)


def quantised(
    rows: int, columns: int, kind: GGMLQuantizationType, seed: int = 0
) -> tuple[np.ndarray, GGMLQuantizationType]:
    """Random blocks of a quantised type: every bit pattern of the quants, scales that are small numbers."""
    block_size, type_size = gguf.GGML_QUANT_SIZES[kind]
    rng = np.random.default_rng(seed)
    blocks = rng.integers(0, 256, (rows * columns // block_size, type_size), dtype=np.uint8)
    for offset in HALF_OFFSETS[kind]:
        halves = rng.uniform(-0.1, 0.1, (len(blocks), 1)).astype(np.float16)
        blocks[:, offset : offset + 2] = halves.view(np.uint8)
    return blocks.reshape(rows, -1), kind


HALF_OFFSETS: Mapping[GGMLQuantizationType, Sequence[int]] = {
    GGMLQuantizationType.Q4_0: (0,),
    GGMLQuantizationType.Q4_1: (0, 2),
    GGMLQuantizationType.Q5_0: (0,),
    GGMLQuantizationType.Q5_1: (0, 2),
    GGMLQuantizationType.Q8_0: (0,),
    GGMLQuantizationType.Q4_K: (0, 2),
    GGMLQuantizationType.Q5_K: (0, 2),
    GGMLQuantizationType.Q6_K: (208,),
}

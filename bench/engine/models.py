"""Random checkpoints of known shapes, for measuring speed where the real weights are not at hand.

    python -m bench.engine.models SHAPE DIRECTORY [--vocabulary 49152] [--gguf q8_0 ...]

Shapes: `smollm2-135m`, `llama-3.2-1b`, `bloom-560m`. Writes a Hugging Face directory in bfloat16 with a byte-level
tokenizer that splits text into pairs of bytes, and beside it (Llama shapes only) GGUF files of the same weights for
engines that read nothing else. A smaller vocabulary than the original keeps the matrix of the logits from hiding the
rest; `llama-3.2-1b` with 49,152 entries has 1,074 million parameters. Every run of one shape writes the same numbers.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

VOCABULARY = 49152
SPECIAL = ("<unk>", "<s>", "</s>")
Tensors = Iterator[tuple[str, tuple[int, ...]]]


@dataclass(frozen=True, slots=True)
class Shape:
    """A decoder's dimensions; `family` says which names and which config they are written under."""

    family: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    intermediate: int
    context: int
    rope_theta: float = 10000.0
    norm_eps: float = 1e-5


SHAPES = {
    "smollm2-135m": Shape("llama", 576, 30, 9, 3, 1536, 8192, 100000.0),
    "llama-3.2-1b": Shape("llama", 2048, 16, 32, 8, 8192, 8192, 500000.0),
    "bloom-560m": Shape("bloom", 1024, 24, 16, 16, 4096, 8192),
}


def make_config(shape: Shape, vocabulary: int) -> dict[str, Any]:
    """What config.json says."""
    common = {"vocab_size": vocabulary, "hidden_size": shape.hidden, "tie_word_embeddings": True, "dtype": "bfloat16"}
    common |= {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "initializer_range": 0.02}
    if shape.family == "bloom":
        return common | {
            "model_type": "bloom",
            "architectures": ["BloomForCausalLM"],
            "n_layer": shape.layers,
            "n_head": shape.heads,
            "seq_length": shape.context,
            "layer_norm_epsilon": shape.norm_eps,
            "apply_residual_connection_post_layernorm": False,
        }
    return common | {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.hidden // shape.heads,
        "intermediate_size": shape.intermediate,
        "max_position_embeddings": shape.context,
        "rms_norm_eps": shape.norm_eps,
        "rope_theta": shape.rope_theta,
        "rope_parameters": {"rope_type": "default", "rope_theta": shape.rope_theta},
        "hidden_act": "silu",
    }


def _llama_tensors(shape: Shape, vocabulary: int) -> Tensors:
    hidden, ffn, kv = shape.hidden, shape.intermediate, shape.hidden // shape.heads * shape.kv_heads
    yield "model.embed_tokens.weight", (vocabulary, hidden)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (hidden,)
        for name, rows in (("q", hidden), ("k", kv), ("v", kv), ("o", hidden)):
            yield f"{prefix}self_attn.{name}_proj.weight", (rows, hidden)
        yield prefix + "post_attention_layernorm.weight", (hidden,)
        yield prefix + "mlp.gate_proj.weight", (ffn, hidden)
        yield prefix + "mlp.up_proj.weight", (ffn, hidden)
        yield prefix + "mlp.down_proj.weight", (hidden, ffn)
    yield "model.norm.weight", (hidden,)


def _bloom_tensors(shape: Shape, vocabulary: int) -> Tensors:
    hidden = shape.hidden
    yield "transformer.word_embeddings.weight", (vocabulary, hidden)
    norms = ["transformer.word_embeddings_layernorm", "transformer.ln_f"]
    for layer in range(shape.layers):
        prefix = f"transformer.h.{layer}."
        norms += [prefix + "input_layernorm", prefix + "post_attention_layernorm"]
        for name, rows, columns in (
            ("self_attention.query_key_value", 3 * hidden, hidden),
            ("self_attention.dense", hidden, hidden),
            ("mlp.dense_h_to_4h", 4 * hidden, hidden),
            ("mlp.dense_4h_to_h", hidden, 4 * hidden),
        ):
            yield f"{prefix}{name}.weight", (rows, columns)
            yield f"{prefix}{name}.bias", (rows,)
    for norm in norms:
        yield norm + ".weight", (hidden,)
        yield norm + ".bias", (hidden,)


def make_tensors(shape: Shape, vocabulary: int) -> dict[str, torch.Tensor]:
    """All parameters: matrices small around zero, weights of norms around one."""
    chance = torch.Generator().manual_seed(0)
    listed = _bloom_tensors(shape, vocabulary) if shape.family == "bloom" else _llama_tensors(shape, vocabulary)
    made = {}
    for name, size in listed:
        value = torch.empty(size, dtype=torch.bfloat16).normal_(std=0.02, generator=chance)
        made[name] = value + 1 if len(size) == 1 and name.endswith("weight") else value
    return made


def _make_vocabulary(size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {token: number for number, token in enumerate((*SPECIAL, *letters))}
    merges = []
    for left, right in itertools.product(letters, letters):
        if len(words) >= size:
            break
        words[left + right] = len(words)
        merges.append((left, right))
    return words, merges


def make_tokenizer(size: int) -> Tokenizer:
    """Byte-level pairs: every text can be encoded, every pair of bytes is one token until the vocabulary is full."""
    tokenizer = Tokenizer(models.BPE(*_make_vocabulary(size)))
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def write_checkpoint(name: str, directory: Path, vocabulary: int = VOCABULARY) -> Path:
    """Writes a Hugging Face directory and returns it."""
    shape = SHAPES[name]
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(make_config(shape, vocabulary), indent=2) + "\n")
    save_file(make_tensors(shape, vocabulary), directory / "model.safetensors", {"format": "pt"})
    make_tokenizer(vocabulary).save(str(directory / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>"}
    (directory / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    return directory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=sorted(SHAPES))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    parser.add_argument("--gguf", nargs="+", default=[], choices=("bf16", "f16", "q8_0", "q4_0", "q4_1"))
    args = parser.parse_args()
    if args.gguf and SHAPES[args.shape].family != "llama":
        parser.error("--gguf is for Llama shapes only")
    write_checkpoint(args.shape, args.directory, args.vocabulary)
    print(args.directory)
    if args.gguf:
        from bench.engine.gguf_models import write_gguf

        for precision in args.gguf:
            print(write_gguf(SHAPES[args.shape], args.directory, precision))


if __name__ == "__main__":
    main()

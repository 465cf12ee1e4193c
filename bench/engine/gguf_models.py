"""Writes a Llama-shaped checkpoint of models.py as GGUF, so that engines of that format run the same weights.

Needs the `gguf` package (extra `dev`). Matrices take the asked type, vectors stay float32, as llama.cpp's own
conversion does it; rows of the query and key projections change places, for that engine turns neighbouring pairs.
Called by models.py.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import gguf
import numpy as np
import torch
from safetensors import safe_open

from bench.engine.models import SPECIAL, Shape

_TYPES = {
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (gguf.GGMLQuantizationType.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
    "q4_1": (gguf.GGMLQuantizationType.Q4_1, gguf.LlamaFileType.MOSTLY_Q4_1),
}
_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """`model.layers.3.mlp.up_proj.weight` -> `blk.3.ffn_up.weight`."""
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    found = re.fullmatch(r"model\.layers\.(\d+)\.(.+)\.weight", name)
    assert found is not None, name
    return f"blk.{found[1]}.{_NAMES[found[2]]}.weight"


def interleave_rotary(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """[heads * D, K] with a head's halves one after the other -> with their elements side by side."""
    return rows.view(heads, 2, -1, rows.shape[1]).transpose(1, 2).reshape(rows.shape)


def _write_tokenizer(writer: gguf.GGUFWriter, directory: Path) -> int:
    model = json.loads((directory / "tokenizer.json").read_text())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    kinds = [gguf.TokenType.CONTROL if token in SPECIAL else gguf.TokenType.NORMAL for token in tokens]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in model["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    return len(tokens)


def write_gguf(shape: Shape, directory: Path, precision: str) -> Path:
    """Writes `directory`/NAME-PRECISION.gguf from the safetensors file beside it."""
    quantisation, file_type = _TYPES[precision]
    path = directory / f"{directory.name}-{precision}.gguf"
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_name(directory.name)
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.intermediate)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(shape.hidden // shape.heads)
    writer.add_rope_freq_base(shape.rope_theta)
    writer.add_layer_norm_rms_eps(shape.norm_eps)
    writer.add_file_type(file_type)
    writer.add_vocab_size(_write_tokenizer(writer, directory))
    with safe_open(directory / "model.safetensors", "pt") as tensors:
        for name in tensors.keys():  # noqa: SIM118 - no mapping
            value = tensors.get_tensor(name).float()
            if "q_proj" in name or "k_proj" in name:
                value = interleave_rotary(value, shape.heads if "q_proj" in name else shape.kv_heads)
            if value.dim() == 1:
                writer.add_tensor(gguf_name(name), value.numpy())
                continue
            packed = gguf.quants.quantize(np.ascontiguousarray(value.numpy()), quantisation)
            writer.add_tensor(gguf_name(name), packed, raw_dtype=quantisation)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path

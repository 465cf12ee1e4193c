"""What GGUF calls things, family by family: tensor names, and what was done to a tensor when it was converted.

GGUF converters rename every tensor and change some: Llama's query and key rows are reordered for another rotary
layout, GPT-2's matrices transposed, BLOOM's fused projection regrouped, Gemma's norms raised by one. A `Change` names
what `gguf_checkpoint.py` must undo. Tables only: configs are in gguf_config.py.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum


class Change(Enum):
    """What conversion did to a tensor."""

    NONE = "none"
    TRANSPOSED = "transposed"  # GPT-2: [out, in] in the file, [in, out] for Hugging Face
    QUERY_ROTARY = "query_rotary"  # Llama: rows of a head interleaved (0, D/2, 1, D/2+1, ...)
    KEY_ROTARY = "key_rotary"
    GROUPED_BY_ROLE = "grouped_by_role"  # BLOOM: all queries, all keys, all values; Hugging Face has them by head
    PLUS_ONE = "plus_one"  # Gemma: the norm's weight itself, Hugging Face stores it minus one


@dataclass(frozen=True, slots=True)
class GgufFamily:
    """Names of one architecture. Keys are GGUF's stems (`attn_q`), values Hugging Face's (`self_attn.q_proj`)."""

    top: Mapping[str, str]
    block_prefix: str
    block: Mapping[str, str]
    changes: Mapping[str, Change]  # by "stem.suffix" of the GGUF name


_LLAMA_TOP = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_LLAMA_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_QWEN3_BLOCK = {**_LLAMA_BLOCK, "attn_q_norm": "self_attn.q_norm", "attn_k_norm": "self_attn.k_norm"}
_GEMMA3_BLOCK = {
    **_QWEN3_BLOCK,
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_GEMMA3_NORMS = (
    "output_norm",
    "attn_norm",
    "attn_q_norm",
    "attn_k_norm",
    "post_attention_norm",
    "ffn_norm",
    "post_ffw_norm",
)

FAMILIES: Mapping[str, GgufFamily] = {
    "llama": GgufFamily(
        top=_LLAMA_TOP,
        block_prefix="model.layers.",
        block=_LLAMA_BLOCK,
        changes={
            "attn_q.weight": Change.QUERY_ROTARY,
            "attn_q.bias": Change.QUERY_ROTARY,
            "attn_k.weight": Change.KEY_ROTARY,
            "attn_k.bias": Change.KEY_ROTARY,
        },
    ),
    "qwen2": GgufFamily(top=_LLAMA_TOP, block_prefix="model.layers.", block=_LLAMA_BLOCK, changes={}),
    "qwen3": GgufFamily(top=_LLAMA_TOP, block_prefix="model.layers.", block=_QWEN3_BLOCK, changes={}),
    "gemma3": GgufFamily(
        top=_LLAMA_TOP,
        block_prefix="model.layers.",
        block=_GEMMA3_BLOCK,
        changes={f"{stem}.weight": Change.PLUS_ONE for stem in _GEMMA3_NORMS},
    ),
    "gpt2": GgufFamily(
        top={
            "token_embd": "transformer.wte",
            "position_embd": "transformer.wpe",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
        block_prefix="transformer.h.",
        block={
            "attn_norm": "ln_1",
            "attn_qkv": "attn.c_attn",
            "attn_output": "attn.c_proj",
            "ffn_norm": "ln_2",
            "ffn_up": "mlp.c_fc",
            "ffn_down": "mlp.c_proj",
        },
        changes={
            "attn_qkv.weight": Change.TRANSPOSED,
            "attn_output.weight": Change.TRANSPOSED,
            "ffn_up.weight": Change.TRANSPOSED,
            "ffn_down.weight": Change.TRANSPOSED,
        },
    ),
    "bloom": GgufFamily(
        top={
            "token_embd": "transformer.word_embeddings",
            "token_embd_norm": "transformer.word_embeddings_layernorm",
            "output_norm": "transformer.ln_f",
            "output": "lm_head",
        },
        block_prefix="transformer.h.",
        block={
            "attn_norm": "input_layernorm",
            "attn_qkv": "self_attention.query_key_value",
            "attn_output": "self_attention.dense",
            "ffn_norm": "post_attention_layernorm",
            "ffn_up": "mlp.dense_h_to_4h",
            "ffn_down": "mlp.dense_4h_to_h",
        },
        changes={"attn_qkv.weight": Change.GROUPED_BY_ROLE, "attn_qkv.bias": Change.GROUPED_BY_ROLE},
    ),
}
ROPE_FACTORS = "rope_freqs.weight"  # Llama 3's scaling, stored as factors; gguf_config.py reads it
_IGNORED = re.compile(r"rope_freqs\.weight|(blk\.\d+\.)?(rot_embd|attn_rot_embd)(\.weight)?")
_BLOCK = re.compile(r"blk\.(\d{1,5})\.(\w+)\.(weight|bias)")
_TOP = re.compile(r"(\w+)\.(weight|bias)")


def is_ignored(gguf_name: str) -> bool:
    """Whether a tensor holds no weights of the model."""
    return _IGNORED.fullmatch(gguf_name) is not None


def hf_name(family: GgufFamily, gguf_name: str) -> tuple[str, Change] | None:
    """Returns the Hugging Face name of a GGUF tensor and what was changed; None when the family has no such tensor."""
    if match := _BLOCK.fullmatch(gguf_name):
        layer, stem, suffix = match.groups()
        name = family.block.get(stem)
        name = None if name is None else f"{family.block_prefix}{int(layer)}.{name}"
    elif match := _TOP.fullmatch(gguf_name):
        stem, suffix = match.groups()
        name = family.top.get(stem)
    else:
        return None
    if name is None:
        return None
    return f"{name}.{suffix}", family.changes.get(f"{stem}.{suffix}", Change.NONE)

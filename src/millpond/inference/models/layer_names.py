"""Parameters of the Llama-shaped families (Llama, Mistral, Qwen, Gemma) by their Hugging Face names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from operator import itemgetter
from typing import TYPE_CHECKING

from millpond.api.model_spec import ModelSpec
from millpond.inference.models.blocks import DecoderWeights, LayerWeights, LinearWeights, Load, NormWeights
from millpond.inference.ops.program import Weight

if TYPE_CHECKING:
    import torch


def stack_rows(name: str, parts: Sequence[tuple[str, tuple[int, ...]]], load: Load) -> Weight:
    """One parameter made of several, one under the other."""
    shape = (sum(part_shape[0] for _, part_shape in parts), *parts[0][1][1:])

    def arrange(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        import torch

        return torch.cat(list(tensors))

    return Weight(name, shape, lambda: arrange([load(part) for part, _ in parts]), tuple(parts), arrange)


def make_llama_weights(spec: ModelSpec, load: Load, names: frozenset[str]) -> DecoderWeights:
    """Separate q, k, v, gate and up projections; norms before attention and MLP, and after them with `post_norms`."""
    embedding = _one("model.embed_tokens.weight", (spec.vocab_size, spec.hidden_size), load)
    is_tied = spec.tie_embeddings or "lm_head.weight" not in names
    head = embedding if is_tied else _one("lm_head.weight", (spec.vocab_size, spec.hidden_size), load)
    layers = tuple(_layer(spec, load, f"model.layers.{i}.") for i in range(spec.num_layers))
    return DecoderWeights(embedding, layers, _norm(spec, load, "model.norm.weight"), head)


def _one(name: str, shape: tuple[int, ...], load: Load) -> Weight:
    return Weight(name, shape, lambda: load(name), ((name, shape),), itemgetter(0))


def _norm(spec: ModelSpec, load: Load, name: str, width: int | None = None) -> NormWeights:
    return NormWeights(_norm_weight(spec, load, name, width or spec.hidden_size))


def _norm_weight(spec: ModelSpec, load: Load, name: str, width: int) -> Weight:
    shape = (width,)
    return Weight(name, shape, lambda: load(name).float() + spec.norm_weight_offset, ((name, shape),))


def _layer(spec: ModelSpec, load: Load, prefix: str) -> LayerWeights:
    hidden, ffn, dim = spec.hidden_size, spec.intermediate_size, spec.head_dim
    heads, groups = spec.num_heads * dim, spec.num_kv_heads * dim
    attention, mlp = prefix + "self_attn.", prefix + "mlp."
    qkv_rows = (("q_proj", heads), ("k_proj", groups), ("v_proj", groups))
    qkv = stack_rows(attention + "qkv", [(f"{attention}{n}.weight", (rows, hidden)) for n, rows in qkv_rows], load)
    qkv_bias = None
    if spec.qkv_bias:
        qkv_bias = stack_rows(attention + "qkv.bias", [(f"{attention}{n}.bias", (rows,)) for n, rows in qkv_rows], load)
    out_bias = _one(attention + "o_proj.bias", (hidden,), load) if spec.attention_out_bias else None
    up = stack_rows(mlp + "gate_up", [(f"{mlp}{n}.weight", (ffn, hidden)) for n in ("gate_proj", "up_proj")], load)
    up_bias = down_bias = None
    if spec.mlp_bias:
        up_bias = stack_rows(mlp + "gate_up.bias", [(f"{mlp}{n}.bias", (ffn,)) for n in ("gate_proj", "up_proj")], load)
        down_bias = _one(mlp + "down_proj.bias", (hidden,), load)
    mlp_norm = "pre_feedforward_layernorm" if spec.post_norms else "post_attention_layernorm"
    layer = LayerWeights(
        attention_norm=_norm(spec, load, prefix + "input_layernorm.weight"),
        qkv=LinearWeights(qkv, qkv_bias),
        attention_out=LinearWeights(_one(attention + "o_proj.weight", (hidden, heads), load), out_bias),
        mlp_norm=_norm(spec, load, f"{prefix}{mlp_norm}.weight"),
        up=LinearWeights(up, up_bias),
        down=LinearWeights(_one(mlp + "down_proj.weight", (hidden, ffn), load), down_bias),
    )
    if spec.qk_norm:
        q_norm = _norm_weight(spec, load, attention + "q_norm.weight", dim)
        k_norm = _norm_weight(spec, load, attention + "k_norm.weight", dim)
        layer = replace(layer, q_norm=q_norm, k_norm=k_norm)
    if spec.post_norms:
        layer = replace(
            layer,
            post_attention_norm=_norm(spec, load, prefix + "post_attention_layernorm.weight"),
            post_mlp_norm=_norm(spec, load, prefix + "post_feedforward_layernorm.weight"),
        )
    return layer

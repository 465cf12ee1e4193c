"""BLOOM: ALiBi instead of positions, a norm on the embedding, q, k and v interleaved by head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from millpond.api.model_spec import ModelSpec
from millpond.inference.models.blocks import DecoderWeights, Family, LayerWeights, LinearWeights, Load, NormWeights
from millpond.inference.models.config_fields import ConfigFields
from millpond.inference.ops.program import Weight

if TYPE_CHECKING:
    import torch


def make_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Spec of a BLOOM config (`hidden_size` or `n_embed`, `n_head` or `num_attention_heads`)."""
    config = {"n_head": config.get("num_attention_heads"), "hidden_size": config.get("n_embed"), **config}
    f = ConfigFields(config)
    hidden, heads = f.size("hidden_size"), f.size("n_head")
    return ModelSpec(
        family="bloom",
        vocab_size=f.size("vocab_size"),
        hidden_size=hidden,
        num_layers=f.size("n_layer", config.get("num_hidden_layers")),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        intermediate_size=4 * hidden,
        max_position=f.size("seq_length", 2048),
        norm="layer",
        norm_eps=f.number("layer_norm_epsilon", 1e-5),
        activation="gelu_tanh",
        gated_mlp=False,
        alibi=True,
        qkv_bias=True,
        attention_out_bias=True,
        mlp_bias=True,
        embedding_norm=True,
        attention_scale=(hidden // heads) ** -0.5,
        tie_embeddings=True,
        bos_token_id=f.token_id("bos_token_id"),
        eos_token_ids=f.token_ids("eos_token_id"),
    )


def _split_heads(fused: torch.Tensor, heads: int, dim: int) -> torch.Tensor:
    """[heads, (q,k,v), dim, ...] rows -> all q, all k, all v."""
    rest = fused.shape[1:]
    return fused.reshape(heads, 3, dim, *rest).transpose(0, 1).reshape(3 * heads * dim, *rest)


def make_weights(spec: ModelSpec, load: Load, names: frozenset[str]) -> DecoderWeights:
    """Names with or without the `transformer.` prefix."""
    prefix = "transformer." if any(n.startswith("transformer.") for n in names) else ""
    hidden, ffn, heads, dim = spec.hidden_size, spec.intermediate_size, spec.num_heads, spec.head_dim

    def one(name: str, *shape: int) -> Weight:
        return Weight(prefix + name, shape, lambda: load(prefix + name), ((prefix + name, shape),), itemgetter(0))

    def norm(name: str) -> NormWeights:
        return NormWeights(one(name + ".weight", hidden), one(name + ".bias", hidden))

    def linear(name: str, outputs: int, inputs: int) -> LinearWeights:
        return LinearWeights(one(name + ".weight", outputs, inputs), one(name + ".bias", outputs))

    def split(name: str, *shape: int) -> Weight:
        def arrange(parts: Sequence[torch.Tensor]) -> torch.Tensor:
            return _split_heads(parts[0], heads, dim)

        return Weight(name, shape, lambda: arrange([load(name)]), ((name, shape),), arrange)

    def qkv(name: str) -> LinearWeights:
        weight = split(f"{prefix}{name}.weight", 3 * hidden, hidden)
        return LinearWeights(weight, split(f"{prefix}{name}.bias", 3 * hidden))

    def layer(h: str) -> LayerWeights:
        return LayerWeights(
            attention_norm=norm(h + "input_layernorm"),
            qkv=qkv(h + "self_attention.query_key_value"),
            attention_out=linear(h + "self_attention.dense", hidden, hidden),
            mlp_norm=norm(h + "post_attention_layernorm"),
            up=linear(h + "mlp.dense_h_to_4h", ffn, hidden),
            down=linear(h + "mlp.dense_4h_to_h", hidden, ffn),
        )

    embedding = one("word_embeddings.weight", spec.vocab_size, hidden)
    layers = tuple(layer(f"h.{i}.") for i in range(spec.num_layers))
    return DecoderWeights(embedding, layers, norm("ln_f"), embedding, embedding_norm=norm("word_embeddings_layernorm"))


FAMILY = Family("bloom", ("bloom",), make_spec, make_weights)

"""GPT-2: learned positions, layer norms, fused qkv, weights stored [in, out]."""

from __future__ import annotations

from collections.abc import Mapping
from operator import itemgetter
from typing import Any

from millpond.api.model_spec import ModelSpec
from millpond.inference.models.blocks import DecoderWeights, Family, LayerWeights, LinearWeights, Load, NormWeights
from millpond.inference.models.config_fields import ConfigFields
from millpond.inference.ops.program import Weight


def make_spec(config: Mapping[str, Any]) -> ModelSpec:
    """Spec of a GPT-2 config."""
    f = ConfigFields(config)
    hidden, heads = f.size("n_embd"), f.size("n_head")
    return ModelSpec(
        family="gpt2",
        vocab_size=f.size("vocab_size"),
        hidden_size=hidden,
        num_layers=f.size("n_layer"),
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=hidden // heads,
        intermediate_size=f.size("n_inner", 4 * hidden),
        max_position=f.size("n_positions"),
        norm="layer",
        norm_eps=f.number("layer_norm_epsilon", 1e-5),
        activation=f.activation("activation_function", "gelu_new"),
        gated_mlp=False,
        learned_positions=True,
        qkv_bias=True,
        attention_out_bias=True,
        mlp_bias=True,
        attention_scale=(hidden // heads) ** -0.5,
        tie_embeddings=True,
        bos_token_id=f.token_id("bos_token_id"),
        eos_token_ids=f.token_ids("eos_token_id"),
    )


def make_weights(spec: ModelSpec, load: Load, names: frozenset[str]) -> DecoderWeights:
    """Names with or without the `transformer.` prefix; projections are transposed on read."""
    prefix = "transformer." if any(n.startswith("transformer.") for n in names) else ""
    hidden, ffn = spec.hidden_size, spec.intermediate_size

    def one(name: str, *shape: int) -> Weight:
        return Weight(prefix + name, shape, lambda: load(prefix + name), ((prefix + name, shape),), itemgetter(0))

    def norm(name: str) -> NormWeights:
        return NormWeights(one(name + ".weight", hidden), one(name + ".bias", hidden))

    def linear(name: str, outputs: int, inputs: int) -> LinearWeights:
        full = f"{prefix}{name}.weight"
        weight = Weight(full, (outputs, inputs), lambda: load(full).t(), ((full, (inputs, outputs)),))
        return LinearWeights(weight, one(name + ".bias", outputs))

    def layer(h: str) -> LayerWeights:
        return LayerWeights(
            attention_norm=norm(h + "ln_1"),
            qkv=linear(h + "attn.c_attn", 3 * hidden, hidden),
            attention_out=linear(h + "attn.c_proj", hidden, hidden),
            mlp_norm=norm(h + "ln_2"),
            up=linear(h + "mlp.c_fc", ffn, hidden),
            down=linear(h + "mlp.c_proj", hidden, ffn),
        )

    embedding = one("wte.weight", spec.vocab_size, hidden)
    layers = tuple(layer(f"h.{i}.") for i in range(spec.num_layers))
    return DecoderWeights(
        embedding, layers, norm("ln_f"), embedding, positions=one("wpe.weight", spec.max_position, hidden)
    )


FAMILY = Family("gpt2", ("gpt2",), make_spec, make_weights)

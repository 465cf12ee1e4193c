"""Builds the program of a decoder from its `ModelSpec` and its family's parameters.

A family file gives two things: how to read a config into a spec, and where each parameter is (`DecoderWeights`). All
families share this one description of a decoder layer; what differs is in the spec. Called by the executors at load.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from millpond.api.model_spec import Activation, ModelSpec
from millpond.inference.models.rope import make_rope_table
from millpond.inference.ops.program import (
    Attention,
    Buffer,
    Embed,
    Epilogue,
    Gather,
    Linear,
    Norm,
    NormOutput,
    Op,
    Program,
    RopeKv,
    RopeTable,
    Weight,
)

if TYPE_CHECKING:
    import torch

GATED: dict[Activation, Epilogue] = {"silu": "silu_mul", "gelu_tanh": "gelu_tanh_mul", "gelu": "gelu_mul"}
Load = Callable[[str], "torch.Tensor"]  # a parameter by its checkpoint name


@dataclass(frozen=True, slots=True)
class NormWeights:
    """A norm's parameters."""

    weight: Weight
    bias: Weight | None = None


@dataclass(frozen=True, slots=True)
class LinearWeights:
    """A projection's parameters, [out, in]."""

    weight: Weight
    bias: Weight | None = None


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One decoder layer. `up` is [2F, E] with the gate's rows first when the MLP is gated."""

    attention_norm: NormWeights
    qkv: LinearWeights
    attention_out: LinearWeights
    mlp_norm: NormWeights
    up: LinearWeights
    down: LinearWeights
    q_norm: Weight | None = None
    k_norm: Weight | None = None
    post_attention_norm: NormWeights | None = None
    post_mlp_norm: NormWeights | None = None


@dataclass(frozen=True, slots=True)
class DecoderWeights:
    """A whole model. `head` is the embedding's own `Weight` when the two are tied."""

    embedding: Weight
    layers: tuple[LayerWeights, ...]
    final_norm: NormWeights
    head: Weight
    positions: Weight | None = None
    embedding_norm: NormWeights | None = None


@dataclass(frozen=True, slots=True)
class Family:
    """A model family: one file, one row in `inference.models.FAMILIES`."""

    name: str  # as in ModelSpec.family
    model_types: tuple[str, ...]
    make_spec: Callable[[Mapping[str, Any]], ModelSpec]
    make_weights: Callable[[ModelSpec, Load, frozenset[str]], DecoderWeights]


def make_alibi_slopes(num_heads: int) -> npt.NDArray[np.float32]:
    """Slopes [H] of ALiBi (Press et al. 2022), with its rule for head counts that are no power of two."""
    power = 1 << (num_heads.bit_length() - 1)
    base = 2.0 ** (-8.0 / power)
    slopes = [base ** (i + 1) for i in range(power)]
    extra = 2.0 ** (-4.0 / power)
    slopes += [extra ** (2 * i + 1) for i in range(num_heads - power)]
    return np.array(slopes, np.float32)


@dataclass(frozen=True, slots=True)
class _Buffers:
    x: Buffer
    normed: Buffer
    qkv: Buffer
    q: Buffer
    mixed: Buffer
    hidden: Buffer
    sub: Buffer  # a sub-layer's output before its own norm (post_norms)

    @staticmethod
    def of(spec: ModelSpec) -> _Buffers:
        attention_width = spec.num_heads * spec.head_dim
        return _Buffers(
            x=Buffer("x", spec.hidden_size, "f32"),
            normed=Buffer("normed", spec.hidden_size, "act"),
            qkv=Buffer("qkv", (spec.num_heads + 2 * spec.num_kv_heads) * spec.head_dim, "f32"),
            q=Buffer("q", attention_width, "act"),
            mixed=Buffer("mixed", attention_width, "act"),
            hidden=Buffer("hidden", spec.intermediate_size, "act"),
            sub=Buffer("sub", spec.hidden_size, "f32"),
        )

    def of_logit_rows(self) -> _Buffers:
        """The same with a row for each logit row where the last layer needs no other."""
        names = ("x", "normed", "mixed", "hidden", "sub")
        buffers: dict[str, Buffer] = {name: getattr(self, name) for name in names}
        return replace(self, **{n: replace(b, name=f"last_{n}", per="logit") for n, b in buffers.items()})

    def all(self) -> tuple[Buffer, ...]:
        return (self.x, self.normed, self.qkv, self.q, self.mixed, self.hidden, self.sub)


@dataclass(frozen=True, slots=True)
class _Sight:
    """How a layer sees positions; `window` 0 sees everything."""

    rope: RopeTable | None
    window: int
    slopes: npt.NDArray[np.float32] | None


def build_program(spec: ModelSpec, weights: DecoderWeights, max_position: int) -> Program:
    """The step of a model as a list of ops.

    Args:
        spec: The model.
        weights: Where its parameters are.
        max_position: Longest sequence that will run, tokens; rotary tables are made this long.
    """
    b = _Buffers.of(spec)
    last = b.of_logit_rows()
    logits = Buffer("logits", spec.vocab_size, "f32", "logit")
    ops: list[Op] = [Embed(b.x, weights.embedding, spec.embedding_scale, weights.positions)]
    if weights.embedding_norm:
        ops.append(_norm(spec, b.x, b.x, weights.embedding_norm, "f32"))
    rope = make_rope_table(spec.rope, max_position) if spec.rope else None
    rope_local = make_rope_table(spec.rope_local, max_position) if spec.rope_local else rope
    slopes = make_alibi_slopes(spec.num_heads) if spec.alibi else None
    for index, layer in enumerate(weights.layers):
        is_sliding = bool(spec.sliding_layers and spec.sliding_layers[index])
        sight = _Sight(rope_local if is_sliding else rope, spec.sliding_window or 0 if is_sliding else 0, slopes)
        is_last = index == spec.num_layers - 1
        ops += _attention_ops(spec, b, layer, index, sight, is_last=is_last)
        if is_last:
            # Behind the last keys and values only rows that logits are made of are read.
            ops += [Gather(b.mixed, last.mixed), Gather(b.x, last.x)]
        rest = last if is_last else b
        ops += _project(spec, rest, rest.mixed, layer.attention_out, layer.post_attention_norm)
        ops += _mlp_ops(spec, rest, layer)
    ops.append(_norm(spec, last.x, last.normed, weights.final_norm))
    ops.append(Linear(last.normed, logits, weights.head, None, "store_f32"))
    buffers = (*b.all(), *(buffer for buffer in last.all() if buffer.per == "logit"), logits)
    return Program(
        tuple(ops),
        logits,
        spec.num_layers,
        spec.num_heads,
        spec.num_kv_heads,
        spec.head_dim,
        spec.vocab_size,
        max_position,
        buffers,
    )


def _norm(spec: ModelSpec, inp: Buffer, out: Buffer, weights: NormWeights, output: NormOutput = "act") -> Norm:
    return Norm(inp, out, weights.weight, weights.bias, spec.norm_eps, spec.norm == "layer", output)


def _attention_ops(
    spec: ModelSpec, b: _Buffers, layer: LayerWeights, index: int, sight: _Sight, *, is_last: bool
) -> list[Op]:
    return [
        _norm(spec, b.x, b.normed, layer.attention_norm),
        Linear(b.normed, b.qkv, layer.qkv.weight, layer.qkv.bias, "store_f32"),
        RopeKv(b.qkv, b.q, index, layer.q_norm, layer.k_norm, spec.norm_eps, spec.attention_scale, sight.rope),
        Attention(b.q, b.mixed, index, sight.window, sight.slopes, for_logits_alone=is_last),
    ]


def _mlp_ops(spec: ModelSpec, b: _Buffers, layer: LayerWeights) -> list[Op]:
    epilogue: Epilogue = GATED[spec.activation] if spec.gated_mlp else spec.activation
    ops: list[Op] = [
        _norm(spec, b.x, b.normed, layer.mlp_norm),
        Linear(b.normed, b.hidden, layer.up.weight, layer.up.bias, epilogue),
    ]
    return ops + _project(spec, b, b.hidden, layer.down, layer.post_mlp_norm)


def _project(spec: ModelSpec, b: _Buffers, inp: Buffer, linear: LinearWeights, post: NormWeights | None) -> list[Op]:
    """Back to the residual stream, through a norm of its own where the family has one."""
    if post is None:
        return [Linear(inp, b.x, linear.weight, linear.bias, "add_f32")]
    return [
        Linear(inp, b.sub, linear.weight, linear.bias, "store_f32"),
        _norm(spec, b.sub, b.x, post, "add_f32"),
    ]

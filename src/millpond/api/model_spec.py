"""`ModelSpec`: what a model is, with every default of its family already filled in.

Built by a family file in `millpond.inference.models` from a checkpoint's config, read by the program builder, the
planner and `millpond models inspect`. Pure data: no torch, no files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

NormKind = Literal["rms", "layer"]
Activation = Literal["silu", "gelu_tanh", "gelu"]


@dataclass(frozen=True, slots=True)
class RopeSpec:
    """Rotary position embedding. `scaling` is the checkpoint's `rope_scaling` (or `rope_parameters`) as read.

    Attributes:
        theta: Base of the frequencies.
        scaling_type: "default", "linear", "llama3" or "yarn".
        scaling: Its numbers by name (factor, low_freq_factor, ...).
        rotary_dim: How many of the head's dimensions turn (the head's dimension when all do).
    """

    theta: float
    rotary_dim: int
    scaling_type: str = "default"
    scaling: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """The shape of a decoder-only transformer. Sizes count elements, not bytes."""

    family: str
    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    max_position: int
    norm: NormKind = "rms"
    norm_eps: float = 1e-5
    norm_weight_offset: float = 0.0  # Gemma stores w-1
    activation: Activation = "silu"
    gated_mlp: bool = True
    rope: RopeSpec | None = None
    rope_local: RopeSpec | None = None  # for sliding layers when it differs
    alibi: bool = False
    learned_positions: bool = False
    sliding_window: int | None = None
    sliding_layers: tuple[bool, ...] = ()  # one per layer; empty: none
    qk_norm: bool = False
    qkv_bias: bool = False
    attention_out_bias: bool = False
    mlp_bias: bool = False
    post_norms: bool = False  # Gemma: a norm after attention and after the MLP as well
    embedding_norm: bool = False  # BLOOM
    embedding_scale: float = 1.0
    attention_scale: float = 0.0  # multiplies q.k; set by the family
    tie_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_ids: tuple[int, ...] = ()

"""The program: a model's forward step as a flat list of operations over named activation buffers.

A family describes its layers once (`inference.models`); this list is then read by two executors: `reference.py` runs
it op by op in plain torch, `native.py` lowers it to the C++ runner. Each op class is the op's contract: its docstring
gives shapes and meaning, its reference is the method of the same name in `reference.py`. Knows nothing of checkpoints.

Letters: T tokens, L logit rows, E hidden, H query heads, G kv heads, D head dimension, F ffn, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import torch

    from millpond.inference.ops.int4 import Int4Weight

Epilogue = Literal[
    "store_f32", "store_act", "add_f32", "silu_mul", "gelu_tanh_mul", "gelu_mul", "gelu_tanh", "gelu", "silu"
]
GATED_EPILOGUES = frozenset({"silu_mul", "gelu_tanh_mul", "gelu_mul"})
NormOutput = Literal["act", "f32", "add_f32"]


@dataclass(frozen=True, slots=True)
class Buffer:
    """An activation, one row a token (or a logit row): "f32" keeps float32, "act" the model's activation dtype."""

    name: str
    width: int
    kind: Literal["f32", "act"]
    per: Literal["token", "logit"] = "token"


@dataclass(frozen=True, slots=True, eq=False)
class Weight:
    """A parameter that is read when an executor asks for it. Identity, not name, says that two ops share one.

    Attributes:
        name: For messages.
        shape: What `load` returns.
        load: Reads it.
        sources: The checkpoint's tensors it is made of, with the shapes they must have.
        arrange: How its rows are made of the sources' rows, whatever a row holds; None where they are made otherwise.
    """

    name: str
    shape: tuple[int, ...]
    load: Callable[[], torch.Tensor]
    sources: tuple[tuple[str, tuple[int, ...]], ...] = ()
    arrange: Callable[[Sequence[torch.Tensor]], torch.Tensor] | None = None


class StoredTensors(Protocol):
    """A checkpoint, as far as it matters in which types its tensors are stored."""

    def kind(self, name: str) -> Literal["float", "int4", "int4_min", "other"]:
        """What a tensor's numbers are stored as."""
        ...

    def read_int4(self, name: str) -> Int4Weight:
        """A tensor that is stored in 4 bits."""
        ...


@dataclass(frozen=True, slots=True)
class Embed:
    """out[T,E] f32 = table[token] * scale (+ positions[position])."""

    out: Buffer
    table: Weight  # [V, E]
    scale: float = 1.0
    positions: Weight | None = None  # [P, E]


@dataclass(frozen=True, slots=True)
class Norm:
    """RMS norm (x / rms(x) * w) or layer norm, in float32; `output` stores or adds to the residual stream."""

    inp: Buffer
    out: Buffer
    weight: Weight  # [E]; any offset (Gemma's 1 +) is already in it
    bias: Weight | None
    eps: float
    is_layer_norm: bool
    output: NormOutput = "act"


@dataclass(frozen=True, slots=True)
class Linear:
    """out = epilogue(inp . weight^T + bias). A gated epilogue takes weight [2F, K], gate rows first; out is F wide."""

    inp: Buffer
    out: Buffer
    weight: Weight  # [N, K]
    bias: Weight | None
    epilogue: Epilogue


@dataclass(frozen=True, slots=True)
class RopeTable:
    """cos and sin side by side, [max_position, rotary] float32; built by `inference.models.rope`."""

    table: npt.NDArray[np.float32]
    rotary: int


@dataclass(frozen=True, slots=True)
class RopeKv:
    """Splits qkv[T, (H+2G)D], norms and rotates q and k, scales q into out[T, H*D], writes k and v into the cache."""

    qkv: Buffer
    out: Buffer
    layer: int
    q_norm: Weight | None
    k_norm: Weight | None
    eps: float
    q_scale: float
    rope: RopeTable | None


@dataclass(frozen=True, slots=True)
class Attention:
    """out[T, H*D] = causal softmax(q . K) V over the sequence's blocks; `window` 0: all; ALiBi slopes [H] or None.

    With `for_logits_alone` nobody reads rows without logits; what `out` has there is undefined.
    """

    q: Buffer
    out: Buffer
    layer: int
    window: int
    alibi_slopes: npt.NDArray[np.float32] | None
    for_logits_alone: bool = False


@dataclass(frozen=True, slots=True)
class Gather:
    """out[L, width] = inp[logit_rows], both of one kind and width."""

    inp: Buffer
    out: Buffer


Op = Embed | Norm | Linear | RopeKv | Attention | Gather


@dataclass(frozen=True, slots=True)
class Program:
    """One model's step. The last op writes `logits` [L, V]. Without `stored` every tensor is one of floats."""

    ops: tuple[Op, ...]
    logits: Buffer
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    vocab_size: int
    max_position: int
    buffers: tuple[Buffer, ...] = field(default=())
    stored: StoredTensors | None = None

    def weights(self) -> list[Weight]:
        """Every parameter once, in the order the ops use them."""
        seen: dict[int, Weight] = {}
        for op in self.ops:
            for name in ("table", "positions", "weight", "bias", "q_norm", "k_norm"):
                weight = getattr(op, name, None)
                if isinstance(weight, Weight):
                    seen.setdefault(id(weight), weight)
        return list(seen.values())

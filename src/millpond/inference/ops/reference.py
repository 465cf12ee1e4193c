"""The reference: every op of a program in plain torch, slow and plain enough to be believed.

What the native kernels are tested against, and what runs where there is no compiler. Holds parameters as torch
tensors; the KV cache is [2, layers, slots, G, D] in the activation dtype, or int8 with a scale a token and head. Called
by `ReferenceExecutor`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F

from millpond.inference.ops.inputs import StepInputs
from millpond.inference.ops.int4 import Int4Weight, choose_form, load_int4, quantise_groups
from millpond.inference.ops.program import (
    GATED_EPILOGUES,
    Attention,
    Buffer,
    Embed,
    Gather,
    Linear,
    Norm,
    Program,
    RopeKv,
    Weight,
)
from millpond.inference.ops.quantise import HADAMARD, Int8Weight, quantise_int8, quantise_rows, rotate

ROW_BUCKET = 32  # rows of a deterministic matrix product
Tensor = torch.Tensor

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
}


class ReferenceProgram:
    """Runs a program op by op.

    Args:
        program: The model's step.
        dtype: "float32", "bfloat16", "int8" (weights only), "w8a8" (activations too, per token) or "int4".
        num_slots: Slots of the KV cache.
        deterministic: Compute rows in fixed buckets and attention token by token, so that a row's bits do not depend on
            what else is in the step.
        cache_dtype: "int8", or None: that of the activations.
        on_weight: Called after each parameter with (done, total).
    """

    def __init__(
        self,
        program: Program,
        *,
        dtype: str,
        num_slots: int,
        deterministic: bool,
        cache_dtype: str | None = None,
        on_weight: Callable[[int, int], None] | None = None,
    ) -> None:
        self._program = program
        self._act = torch.float32 if dtype == "float32" else torch.bfloat16
        self._deterministic = deterministic
        self._weights: dict[int, Tensor | Int8Weight | Int4Weight] = {}
        matrices = {id(op.weight) for op in program.ops if isinstance(op, Linear)}
        if dtype == "int4":
            matrices |= {id(op.table) for op in program.ops if isinstance(op, Embed)}
        weights = program.weights()
        for done, weight in enumerate(weights, 1):
            self._weights[id(weight)] = self._load(weight, dtype, id(weight) in matrices)
            if on_weight:
                on_weight(done, len(weights))
        shape = (2, program.num_layers, num_slots, program.num_kv_heads, program.head_dim)
        self._cache = torch.zeros(shape, dtype=torch.int8 if cache_dtype == "int8" else self._act)
        self._cache_scales = torch.zeros(shape[:-1]) if cache_dtype == "int8" else None
        self._has_rotated_heads = program.head_dim % HADAMARD == 0  # of an int8 cache, as csrc/kv_int8.h has it
        self._buffers: dict[Buffer, Tensor] = {}

    def _load(self, weight: Weight, dtype: str, is_matrix: bool) -> Tensor | Int8Weight | Int4Weight:
        if dtype == "int4" and is_matrix:
            form = choose_form(self._program, weight)
            return quantise_int8(weight.load()) if form == "int8" else load_int4(self._program, weight, form)
        value = weight.load()
        if not is_matrix:
            return value.float() if value.dim() == 1 or dtype == "float32" else value.to(self._act)
        if dtype in ("int8", "w8a8"):
            return quantise_int8(value, is_rotated=dtype == "w8a8")
        return value.to(self._act).contiguous()

    @property
    def weight_bytes(self) -> int:
        """Bytes of all parameters as they are held."""
        return sum(w.nbytes for w in self._weights.values())

    @property
    def cache_bytes(self) -> int:
        """Bytes of keys and values, scales included."""
        return self._cache.nbytes + (0 if self._cache_scales is None else self._cache_scales.nbytes)

    def view(self, buffer: Buffer) -> Tensor:
        """A buffer as it is after the last step, [rows, width]."""
        return self._buffers[buffer]

    def put(self, buffer: Buffer, value: Tensor) -> None:
        """Sets a buffer, for tests of single ops."""
        self._store(buffer, value)

    def run(self, inputs: StepInputs) -> Tensor:
        """One step; logits [L, V] float32."""
        with torch.inference_mode():
            for op in self._program.ops:
                if isinstance(op, Embed):
                    self._embed(op, inputs)
                elif isinstance(op, Norm):
                    self._norm(op)
                elif isinstance(op, Linear):
                    self._linear(op)
                elif isinstance(op, RopeKv):
                    self._rope_kv(op, inputs)
                elif isinstance(op, Attention):
                    self._attention(op, inputs)
                elif isinstance(op, Gather):
                    self._buffers[op.out] = self._buffers[op.inp][torch.from_numpy(inputs.logit_rows).long()]
            return self._buffers[self._program.logits]

    def _vector(self, weight: Weight) -> Tensor:
        value = self._weights[id(weight)]
        assert isinstance(value, Tensor)
        return value.float()

    def _rows_of(self, weight: Weight, rows: Tensor) -> Tensor:
        value = self._weights[id(weight)]
        return (value.rows(rows) if isinstance(value, Int8Weight | Int4Weight) else value[rows]).float()

    def _store(self, buffer: Buffer, value: Tensor) -> None:
        self._buffers[buffer] = value.to(self._act) if buffer.kind == "act" else value.float()

    def _embed(self, op: Embed, inputs: StepInputs) -> None:
        x = self._rows_of(op.table, torch.from_numpy(inputs.token_ids).long()) * op.scale
        if op.positions is not None:
            x = x + self._rows_of(op.positions, torch.from_numpy(inputs.positions).long())
        self._store(op.out, x)

    def _norm(self, op: Norm) -> None:
        x = self._buffers[op.inp].float()
        if op.is_layer_norm:
            x = x - x.mean(-1, keepdim=True)
        y = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + op.eps) * self._vector(op.weight)
        if op.bias is not None:
            y = y + self._vector(op.bias)
        self._store(op.out, self._buffers[op.out] + y if op.output == "add_f32" else y)

    def _linear(self, op: Linear) -> None:
        weight = self._weights[id(op.weight)]
        x = self._buffers[op.inp]
        if isinstance(weight, Int8Weight) and weight.is_rotated:
            # Sums of integers below 2^24 a term: exact in float64 in any order.
            rows, scale = quantise_rows(rotate(x.float() / HADAMARD))
            y = F.linear(rows.double(), weight.values.double()).float() * scale * weight.scale
        elif isinstance(weight, Int4Weight):
            y = self._product(quantise_groups(x), weight.widen())  # both padded to whole groups
        elif isinstance(weight, Int8Weight):
            y = self._product(x, weight.widen(self._act)).float() * weight.scale
        else:
            y = self._product(x, weight).float()
        if op.bias is not None:
            y = y + self._vector(op.bias)
        if op.epilogue in GATED_EPILOGUES:
            gate, up = y.chunk(2, dim=-1)
            y = _ACTIVATIONS[op.epilogue.removesuffix("_mul")](gate) * up
        elif op.epilogue in _ACTIVATIONS:
            y = _ACTIVATIONS[op.epilogue](y)
        elif op.epilogue == "add_f32":
            y = self._buffers[op.out] + y
        self._store(op.out, y)

    def _product(self, x: Tensor, matrix: Tensor) -> Tensor:
        if not self._deterministic:
            return F.linear(x, matrix)
        rows = x.shape[0]
        padded = F.pad(x, (0, 0, 0, -rows % ROW_BUCKET))
        return torch.cat([F.linear(part, matrix) for part in torch.split(padded, ROW_BUCKET)])[:rows]

    def _rope_kv(self, op: RopeKv, inputs: StepInputs) -> None:
        program = self._program
        heads, groups, dim = program.num_heads, program.num_kv_heads, program.head_dim
        qkv = self._buffers[op.qkv].view(-1, heads + 2 * groups, dim)  # [T, H+2G, D]
        q, k, v = torch.split(qkv, [heads, groups, groups], dim=1)
        for weight, is_query in ((op.q_norm, True), (op.k_norm, False)):
            if weight is not None:
                x = q if is_query else k
                x = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + op.eps) * self._vector(weight)
                q, k = (x, k) if is_query else (q, x)
        if op.rope is not None:
            table = torch.as_tensor(op.rope.table)[torch.from_numpy(inputs.positions).long()]  # [T, rotary]
            q, k = _rotate(q, table, op.rope.rotary), _rotate(k, table, op.rope.rotary)
        q = q * op.q_scale
        is_rotated = self._cache_scales is not None and self._has_rotated_heads
        self._store(op.out, (rotate(q) if is_rotated else q).reshape(-1, heads * dim))
        slots, pair = torch.from_numpy(inputs.slots).long(), torch.stack([k, v])  # [2, T, G, D]
        if self._cache_scales is None:
            self._cache[:, op.layer, slots] = pair.to(self._act)
            return
        codes, scales = quantise_rows(rotate(pair / HADAMARD) if is_rotated else pair)
        self._cache[:, op.layer, slots], scales = codes.to(torch.int8), scales[..., 0]
        # A token whose keys or values are not finite poisons both: whoever looks at it shall see NaN.
        self._cache_scales[:, op.layer, slots] = scales.masked_fill(scales.isnan().any(dim=0), torch.nan)

    def _keys_and_values(self, layer: int, slots: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of a sequence, [length, G, D] each."""
        pair = self._cache[:, layer, slots]
        if self._cache_scales is not None:
            pair = pair.float() * self._cache_scales[:, layer, slots, :, None]
            pair = rotate(pair) if self._has_rotated_heads else pair
        return pair[0], pair[1]

    def _queries(self, buffer: Buffer) -> Tensor:
        """Queries [T, H, D], as what meets an int8 cache sees them: with 7 bits."""
        program = self._program
        queries = self._buffers[buffer].view(-1, program.num_heads, program.head_dim)
        if self._cache_scales is None:
            return queries
        codes, scales = quantise_rows(queries)
        return rotate(codes * scales / HADAMARD) if self._has_rotated_heads else codes * scales

    def _attention(self, op: Attention, inputs: StepInputs) -> None:
        program = self._program
        queries = self._queries(op.q)
        out = torch.empty_like(queries)
        for b in range(inputs.num_sequences):
            first, last = int(inputs.query_start[b]), int(inputs.query_start[b + 1])
            length = int(inputs.context_len[b])
            slots = sequence_slots(inputs, b, length)
            k, v = self._keys_and_values(op.layer, slots)
            step = 1 if self._deterministic else last - first
            for i in range(first, last, step):
                position = int(inputs.positions[i])
                seen = position + step
                out[i : i + step] = attend(queries[i : i + step], k[:seen], v[:seen], position, op)
        self._store(op.out, out.view(-1, program.num_heads * program.head_dim))


def sequence_slots(inputs: StepInputs, b: int, length: int) -> Tensor:
    """Slots of the first `length` tokens of sequence b."""
    table = torch.from_numpy(inputs.block_tables[b]).long()
    positions = torch.arange(length)
    return table[positions // inputs.block_size] * inputs.block_size + positions % inputs.block_size


def _rotate(x: Tensor, table: Tensor, rotary: int) -> Tensor:
    half = rotary // 2
    cos, sin = table[:, None, :half], table[:, None, half:]
    a, b, rest = x[..., :half], x[..., half:rotary], x[..., rotary:]
    return torch.cat([a * cos - b * sin, b * cos + a * sin, rest], dim=-1)


def attend(q: Tensor, k: Tensor, v: Tensor, position: int, op: Attention) -> Tensor:
    """Attention of consecutive query rows q [n, H, D] from `position` on, over k, v [S, G, D]; float32 inside."""
    n, heads, _ = q.shape
    repeat = heads // k.shape[1]
    keys = k.float().repeat_interleave(repeat, dim=1)  # [S, H, D]
    values = v.float().repeat_interleave(repeat, dim=1)
    scores = torch.einsum("qhd,khd->hqk", q.float(), keys)
    query_position = torch.arange(position, position + n)[:, None]
    key_position = torch.arange(k.shape[0])[None, :]
    if op.alibi_slopes is not None:
        scores = scores + torch.as_tensor(op.alibi_slopes)[:, None, None] * (key_position - query_position)
    hidden = key_position > query_position
    if op.window:
        hidden = hidden | (key_position <= query_position - op.window)
    scores = scores.masked_fill(hidden, float("-inf"))
    return torch.einsum("hqk,khd->qhd", scores.softmax(-1), values)

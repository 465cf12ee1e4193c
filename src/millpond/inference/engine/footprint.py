"""How much memory a model will take, from its headers alone: said before a byte of its weights is read.

Follows what loading does, parameter by parameter: the pages of the model's file and the working copies of the parameter
at hand, and what is kept of it: a mapping of the packed file, which is there or is written first, or a copy that grows.
The interpreter and the tokenizer are not guessed but measured, in the process that asks. Called by the doctor.
"""

from __future__ import annotations

import importlib
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from millpond.api.model_spec import ModelSpec
from millpond.config.resolve import resolve, resolve_draft
from millpond.config.resolved import ResolvedConfig
from millpond.config.schema import EngineConfig
from millpond.inference.engine.hardware import native_facts
from millpond.inference.engine.loading_weights import keeps_packed, packed_cache, packed_key
from millpond.inference.models import build_spec, make_program
from millpond.inference.ops import native
from millpond.inference.ops.int4 import GROUP, choose_form
from millpond.inference.ops.native_lowering import align32
from millpond.inference.ops.parameters import CountedParameters
from millpond.inference.ops.program import GATED_EPILOGUES, Linear, Program, RopeKv, Weight
from millpond.inference.ops.quantise import ROWS_AT_ONCE
from millpond.inference.text import load_text
from millpond.inference.weights import Checkpoint, open_checkpoint
from millpond.inference.weights.gguf_int4 import stored_blocks

_ITEM = {"float32": 4, "bfloat16": 2, "int8": 1}
_STORED_ITEM = {"F32": 4, "F16": 2, "BF16": 2, "F64": 8}
_THREAD_BYTES = 8 << 20  # scratch of a thread (csrc/program.h)
_WRITE_BYTES = 16 << 20  # collected before they are written (weights/packed_writer.py)
_VECTOR = "float32 vectors"
_ENGINE = ("millpond.inference.engine.loading", "millpond.inference.engine.loop")
_TORCH = ("torch",)  # reads and packs; an engine whose weights are packed does without


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes of resident memory.

    Attributes:
        process: The interpreter, torch, the engine's code and the tokenizer, as they are now.
        weights: Packed parameters by the dtype they are kept in.
        weights_from: "packed file": it is on the disk and gets mapped; "first start": it is written first; "memory":
            every start packs them.
        mapped_file: Pages of the model's own file that stay mapped; the system takes them back when memory is short.
        cache: The KV cache when every block was used.
        buffers: Activations, logits, rotary tables and the threads' scratch.
        transient: Working copies of the parameter that costs most while it is packed.
        draft: All of the draft model, with a full cache; 0 without one.
        after_loading: All there is when the model is ready, with an empty cache.
        peak: The most there will be, while loading or with a full cache.
    """

    dtype: str
    process: int
    weights: dict[str, int]
    weights_from: Literal["packed file", "first start", "memory"]
    mapped_file: int
    cache: int
    buffers: int
    transient: int
    after_loading: int
    peak: int
    draft: int = 0


def predict_footprint(config: EngineConfig, model_path: str) -> Footprint:
    """What `config` will take once it runs.

    Raises:
        CheckpointError: The model's files are missing or broken.
        ConfigError: Something asked for cannot be done.
    """
    checkpoint = open_checkpoint(model_path)
    spec = build_spec(checkpoint.config)
    resolved = resolve(config, spec, model_path, *native_facts(spec))
    program, loading = _load_on_paper(checkpoint, spec, resolved)
    draft = _draft_model(config, resolved) if resolved.speculation == "draft" else None
    imported = [
        importlib.import_module(name) for name in (*_ENGINE, *([] if loading.source == "packed file" else _TORCH))
    ]
    text = load_text(model_path, config.model.tokenizer, config.model.chat_template)
    process = resident_bytes()
    del text, imported
    own = _add_up(program, loading, resolved, process)
    if draft is None:
        return own
    loaded = own.after_loading + draft.after_loading
    # It is loaded after the model, whose cache and buffers may fill up beside it later.
    peak = max(own.peak + draft.after_loading + draft.cache + draft.buffers, own.after_loading + draft.peak)
    return replace(own, draft=draft.after_loading + draft.cache + draft.buffers, after_loading=loaded, peak=peak)


def resident_bytes() -> int:
    """Memory of this process that is in RAM."""
    found = re.search(r"VmRSS:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return int(found[1]) * 1024 if found else 0


def _load_on_paper(checkpoint: Checkpoint, spec: ModelSpec, resolved: ResolvedConfig) -> tuple[Program, _Loading]:
    shapes = {name: info.shape for name, info in checkpoint.tensors.items()}
    program = make_program(spec, checkpoint.read, shapes, resolved.max_model_len, stored_blocks(checkpoint))
    is_native = resolved.executor == "native"
    loading = (_native_loading if is_native else _reference_loading)(program, checkpoint, resolved)
    checkpoint.close()
    return program, loading


def _draft_model(config: EngineConfig, target: ResolvedConfig) -> Footprint:
    """The draft model's own share; the process is the model's."""
    checkpoint = open_checkpoint(target.draft_model_path)
    spec = build_spec(checkpoint.config)
    resolved = resolve_draft(config, spec, target, *native_facts(spec))
    return _add_up(*_load_on_paper(checkpoint, spec, resolved), resolved, 0)


def _add_up(program: Program, loading: _Loading, resolved: ResolvedConfig, process: int) -> Footprint:
    scale = 4 if resolved.cache_dtype == "int8" else 0  # of a token and head
    head_bytes = program.head_dim * _ITEM[resolved.cache_dtype] + scale
    token_bytes = 2 * program.num_layers * program.num_kv_heads * head_bytes
    cache = token_bytes * resolved.num_blocks * resolved.block_size
    tables, buffers = _table_bytes(program), _buffer_bytes(program, resolved)
    loaded = process + sum(loading.kept.values()) + loading.mapped + tables
    return Footprint(
        dtype=resolved.dtype,
        process=process,
        weights=loading.kept,
        weights_from=loading.source,
        mapped_file=loading.mapped,
        cache=cache,
        buffers=buffers + tables,
        transient=loading.largest,
        after_loading=loaded,
        peak=max(process + tables + loading.highest, loaded + buffers + cache),
    )


@dataclass(frozen=True, slots=True)
class _Loading:
    """What loading takes and leaves: `largest` for one parameter, `highest` of all there is at a time."""

    kept: dict[str, int]
    source: Literal["packed file", "first start", "memory"]
    mapped: int
    largest: int
    highest: int


def _native_loading(program: Program, checkpoint: Checkpoint, resolved: ResolvedConfig) -> _Loading:
    counted = CountedParameters()
    native.pack_parameters(program, resolved.dtype, counted)
    kept, size_of = Counter[str](), Counter[str]()
    for label, size in counted.sizes.items():
        name, dtype = label.split()[:2]
        kept[dtype] += size
        size_of[name] += size
    total = sum(kept.values())
    keeps = keeps_packed(resolved, checkpoint) and total <= resolved.packed_bytes
    if keeps and packed_cache(resolved).has(packed_key(resolved, checkpoint, checkpoint.content_digest())):
        return _Loading(dict(kept), "packed file", 0, 0, total)
    now = largest = highest = 0
    buffers = [0, 0]  # of the writer, in turn
    for index, (weight, is_matrix, is_gated) in enumerate(_in_order(program)):
        source = sum(checkpoint.tensors[name].size_bytes for name, _ in weight.sources)
        form = _form(program, weight, resolved, is_matrix=is_matrix)
        working = source + _transient(weight, checkpoint, form, is_gated=is_gated)
        buffers[index % 2] = max(buffers[index % 2], size_of[weight.name])
        now = sum(buffers) + _WRITE_BYTES if keeps else now + size_of[weight.name]
        largest, highest = max(largest, working), max(highest, now + working)
    return _Loading(dict(kept), "first start" if keeps else "memory", 0, largest, max(highest, total))


def _reference_loading(program: Program, checkpoint: Checkpoint, resolved: ResolvedConfig) -> _Loading:
    """The file stays mapped: parameters may be views of it."""
    kept: dict[str, int] = {}
    mapped = highest = largest = 0
    for weight, is_matrix, is_gated in _in_order(program):
        mapped += sum(checkpoint.tensors[name].size_bytes for name, _ in weight.sources)
        form = _form(program, weight, resolved, is_matrix=is_matrix)
        working = _transient(weight, checkpoint, form, is_gated=is_gated)
        for dtype, size in _reference_bytes(weight, form).items():
            kept[dtype] = kept.get(dtype, 0) + size
        highest = max(highest, sum(kept.values()) + mapped + working)
        largest = max(largest, working)
    return _Loading(kept, "memory", mapped, largest, highest)


def _in_order(program: Program) -> Iterator[tuple[Weight, bool, bool]]:
    """(parameter, whether it is a matrix, whether gate and up are interleaved), each once, as loading meets them."""
    seen: set[int] = set()
    for op in program.ops:
        is_gated = isinstance(op, Linear) and op.epilogue in GATED_EPILOGUES
        for name in ("table", "positions", "weight", "bias", "q_norm", "k_norm"):
            weight = getattr(op, name, None)
            if isinstance(weight, Weight) and id(weight) not in seen:
                seen.add(id(weight))
                yield weight, name == "table" or (name == "weight" and isinstance(op, Linear)), is_gated


def _numbers(weight: Weight) -> int:
    count = 1
    for size in weight.shape:
        count *= size
    return count


def _form(program: Program, weight: Weight, resolved: ResolvedConfig, *, is_matrix: bool) -> str:
    """What a parameter is kept in; of 4 bits also whether they have minimums or are made here."""
    if not is_matrix:
        return _VECTOR
    if resolved.dtype == "int4":
        return choose_form(program, weight)
    return "int8" if resolved.dtype == "w8a8" else resolved.dtype


def _reference_bytes(weight: Weight, form: str) -> dict[str, int]:
    if form == _VECTOR:
        return {_VECTOR: 4 * _numbers(weight)}
    if "int4" in form:
        return {"int4": _int4_bytes(weight, form)}
    scales = {_VECTOR: 4 * weight.shape[0]} if form == "int8" else {}
    return {form: _numbers(weight) * _ITEM[form]} | scales


def _int4_bytes(weight: Weight, form: str) -> int:
    rows, columns = weight.shape
    return rows * -(-columns // GROUP) * (GROUP // 2 + (4 if form == "int4_min" else 2))


def _transient(weight: Weight, checkpoint: Checkpoint, form: str, *, is_gated: bool) -> int:
    """Bytes of copies alive at once while a parameter is read, rearranged, quantised or widened."""
    if form in ("int4", "int4_min"):  # the parts of a stack and the stack, or a stack, its padded halves and its groups
        copies = 3 if is_gated else min(2, len(weight.sources))
        return copies * _int4_bytes(weight, form)
    stored = [checkpoint.tensors[name].dtype for name, _ in weight.sources]
    item = max((_STORED_ITEM.get(dtype, 4) for dtype in stored), default=4)
    is_view = len(stored) == 1 and checkpoint.format == "safetensors"
    value = 0 if is_view else item * _numbers(weight)
    if form == _VECTOR:
        return value
    copies, row_numbers = value, _numbers(weight) // weight.shape[0]
    slice_numbers = min(ROWS_AT_ONCE, weight.shape[0]) * row_numbers
    if form == "make_int4":  # of a slice of rows float32 values, their size, the quotient and what came of it
        made = _int4_bytes(weight, form)
        return value + max((3 if is_gated else 1) * made, made + 16 * slice_numbers)
    if is_gated:  # the rows as they were, the padded halves, and the groups made of them
        copies, value = value + 2 * item * _numbers(weight), item * _numbers(weight)
    if form == "int8":  # int8 values; of a slice of rows float32 values, the quotient and its rounding
        made = _numbers(weight) + (8 if item == 4 else 12) * slice_numbers
    else:
        made = 0 if item == _ITEM[form] else _ITEM[form] * _numbers(weight)
    return max(copies, value + made)


def _table_bytes(program: Program) -> int:
    tables = {id(op.rope): op.rope.table.nbytes for op in program.ops if isinstance(op, RopeKv) and op.rope}
    return sum(tables.values())


def _buffer_bytes(program: Program, resolved: ResolvedConfig) -> int:
    """Activations of the largest step; of the logits as many rows as there can be sequences."""
    act = 4 if resolved.dtype == "float32" else 2
    rows = {"token": resolved.max_batch_tokens, "logit": min(resolved.max_sequences, resolved.max_batch_tokens)}
    total = resolved.threads * _THREAD_BYTES
    for buffer in program.buffers:
        total += align32(rows[buffer.per]) * align32(buffer.width) * (act if buffer.kind == "act" else 4)
    return total

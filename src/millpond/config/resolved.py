"""`ResolvedConfig`: what runs. Frozen, nothing optional, printed at start; built by resolve.py alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ResolvedConfig:
    """Every decision, made. Byte sizes are bytes, times seconds, lengths tokens."""

    model_path: str  # a directory or a .gguf file that exists
    model_name: str
    tokenizer_path: str | None
    chat_template_path: str | None
    dtype: Literal["float32", "bfloat16", "int8", "w8a8", "int4"]
    dtype_reason: str
    packed_bytes: int  # most that packed weights may take on the disk; 0 keeps none
    max_model_len: int
    cache_dtype: Literal["float32", "bfloat16", "int8"]
    block_size: int
    num_blocks: int
    enable_prefix_cache: bool
    max_batch_tokens: int
    max_sequences: int
    max_queue: int
    speculation: Literal["off", "ngram", "draft"]
    speculation_max_tokens: int  # guesses for a sequence in one step
    draft_model_path: str  # empty without one
    rejects_drafts: bool  # requests without a seed may get other tokens of the same distribution
    executor: Literal["native", "reference"]
    isa: Literal["amx", "avx512_bf16", "avx512", "avx2", "none"]
    threads: int
    deterministic: bool
    seed: int

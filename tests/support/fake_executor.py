"""An executor without a model, to test the engine around it, and its answers worked out without an engine.

It keeps token ids in a cache by slot, as a real one keeps keys and values, and its logits are a function of the tokens
it finds through the block table. A wrong slot, table, position, prefix hit or recomputation gives wrong tokens.
`expected_tokens` says what must come out, from the prompt alone.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from millpond.config.resolved import ResolvedConfig
from millpond.inference.engine.core import EngineCore
from millpond.inference.engine.speculator import Speculator
from millpond.inference.kv import BlockHasher, KVCache
from millpond.inference.ops.inputs import StepInputs
from millpond.inference.sampling.sampler import Sampler
from millpond.inference.sched import Scheduler, SchedulerLimits

VOCAB_SIZE = 300
EOS = 299


@functools.lru_cache(maxsize=1 << 10)
def _noise(state: int) -> np.ndarray:
    return np.random.default_rng(state).standard_normal(VOCAB_SIZE).astype(np.float32) * 3


def logits_after(tokens: Sequence[int]) -> np.ndarray:
    """The logits that follow these tokens: noise that depends on every token and its place."""
    state = 7
    for token in tokens:
        state = (state * 1_000_003 + token + 1) % (1 << 61)
    return _noise(state)


def expected_tokens(prompt: Sequence[int], count: int, eos: int | None = EOS) -> list[int]:
    """What greedy decoding must give, up to and with the end of sequence."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count:
        tokens.append(int(logits_after(tokens).argmax()))
        if tokens[-1] == eos:
            break
    return tokens[len(prompt) :]


@dataclass(frozen=True)
class FakeInfo:
    """What the engine reads of `ExecutorInfo`."""

    num_blocks: int
    block_size: int
    vocab_size: int = VOCAB_SIZE


class FakeExecutor:
    """Logits from the tokens in the cache.

    Attributes:
        failures: Exceptions for the next steps to raise.
        step_seconds: How long a step takes.
        batches: (tokens, sequences) of every step.
    """

    def __init__(self, *, num_blocks: int, block_size: int, step_seconds: float = 0.0) -> None:
        self.info = FakeInfo(num_blocks, block_size)
        self.kernel_seconds = 0.0
        self.peaks = None
        self.sums = None
        self.failures: list[Exception] = []
        self.step_seconds = step_seconds
        self.batches: list[tuple[int, int]] = []
        self.is_closed = False
        self._cache = np.full(num_blocks * block_size, -1, np.int64)

    def execute(self, inputs: StepInputs, *, wants_sums: bool = False) -> np.ndarray:
        self.batches.append((inputs.num_tokens, inputs.num_sequences))
        if self.step_seconds:
            time.sleep(self.step_seconds)
        if self.failures:
            self._cache[inputs.slots] = -2  # half a step: what was written is worth nothing
            raise self.failures.pop(0)
        for array in (inputs.token_ids, inputs.positions, inputs.slots, inputs.query_start, inputs.block_tables):
            assert array.dtype == np.int32
            assert array.flags.c_contiguous
        self._cache[inputs.slots] = inputs.token_ids
        rows = np.zeros((len(inputs.logit_rows), VOCAB_SIZE), np.float32)
        for i, row in enumerate(inputs.logit_rows.tolist()):
            sequence = int(np.searchsorted(inputs.query_start, row, side="right")) - 1
            rows[i] = logits_after(self._context(inputs, sequence, int(inputs.positions[row])))
        return rows

    def close(self) -> None:
        self.is_closed = True

    def _context(self, inputs: StepInputs, sequence: int, position: int) -> list[int]:
        assert position < inputs.context_len[sequence]
        where = np.arange(position + 1)
        size = self.info.block_size
        tokens = self._cache[inputs.block_tables[sequence][where // size] * size + where % size].tolist()
        assert min(tokens) >= 0, "a slot is read that was never written"
        return tokens


def make_config(**changes: object) -> ResolvedConfig:
    """A small engine's config."""
    values: dict[str, object] = {
        "model_path": "fake",
        "model_name": "fake",
        "tokenizer_path": None,
        "chat_template_path": None,
        "dtype": "float32",
        "dtype_reason": "a test",
        "packed_bytes": 0,
        "max_model_len": 256,
        "cache_dtype": "float32",
        "block_size": 8,
        "num_blocks": 64,
        "enable_prefix_cache": True,
        "max_batch_tokens": 32,
        "max_sequences": 8,
        "max_queue": 64,
        "speculation": "off",
        "speculation_max_tokens": 8,
        "draft_model_path": "",
        "rejects_drafts": False,
        "executor": "reference",
        "isa": "none",
        "threads": 1,
        "deterministic": True,
        "seed": 1,
    }
    return ResolvedConfig(**(values | changes))  # type: ignore[arg-type]


def make_core(
    config: ResolvedConfig | None = None,
    *,
    step_seconds: float = 0.0,
    clock: object = time.monotonic,
    speculator: Speculator | None = None,
) -> tuple[EngineCore, FakeExecutor]:
    """A core on a fake executor; its scheduler checks itself after every call."""
    config = config or make_config()
    executor = FakeExecutor(
        num_blocks=config.num_blocks,
        block_size=config.block_size,
        step_seconds=step_seconds,
    )
    limits = SchedulerLimits(
        max_batch_tokens=config.max_batch_tokens,
        max_sequences=config.max_sequences,
        max_queue=config.max_queue,
        max_model_len=config.max_model_len,
    )
    hasher = BlockHasher(block_size=config.block_size, weights_digest="fake", dtype="float32")
    cache = KVCache(config.num_blocks, hasher, enable_prefix=config.enable_prefix_cache)
    sampler = Sampler(VOCAB_SIZE, config.seed)
    scheduler = Scheduler(limits, cache, validate=True)
    core = EngineCore(
        config,
        executor,  # type: ignore[arg-type]
        sampler,
        scheduler,
        eos_token_ids=[EOS],
        speculator=speculator,
        clock=clock,  # type: ignore[arg-type]
    )
    return core, executor

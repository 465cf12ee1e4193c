"""Makes an engine from what a user asked for: checkpoint, decisions, parameters, scheduler, sampler.

The one place where the engine's parts are put together; used by the engine process and by `LLM`. Without
torch where the weights are packed already. Says how far it is and, at the end, what each stage took.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from millpond.api.request import EngineInfo
from millpond.base.errors import ConfigError
from millpond.config.resolve import resolve, resolve_draft
from millpond.config.resolved import ResolvedConfig
from millpond.config.schema import EngineConfig
from millpond.inference.engine.core import EngineCore
from millpond.inference.engine.draft_model import DraftLimits, DraftModel
from millpond.inference.engine.draft_speculator import FIRST_CREDIT, MOST_CREDIT, DraftSpeculator
from millpond.inference.engine.executor import ExecutorInfo, make_executor
from millpond.inference.engine.hardware import native_facts
from millpond.inference.engine.speculator import NgramSpeculator, NoSpeculator, Speculator
from millpond.inference.engine.stages import StageClock
from millpond.inference.kv import BlockHasher, KVCache
from millpond.inference.models import build_spec
from millpond.inference.sampling.grammar import GrammarBackend
from millpond.inference.sampling.sampler import Sampler
from millpond.inference.sched import Scheduler, SchedulerLimits
from millpond.inference.sched.speculation import SpeculationPolicy
from millpond.inference.text import TextModel, Tokenizer, load_text
from millpond.inference.weights import open_checkpoint


@dataclass(frozen=True, slots=True)
class LoadedEngine:
    """An engine that is ready, what it says of itself, and its model's text side."""

    core: EngineCore
    info: EngineInfo
    text: TextModel


def load_engine(config: EngineConfig, model_path: str, clock: StageClock) -> LoadedEngine:
    """Loads what `config` asks for.

    Args:
        config: What was asked for.
        model_path: The directory or file that its model stands for.
        clock: Told of every stage; its seconds end up in `EngineInfo.load_seconds`.

    Raises:
        CheckpointError: The model's files are missing or broken.
        ConfigError: Something asked for cannot be done.
        MemoryError: Parameters or cache do not fit.
    """
    clock("open checkpoint", 0.0)
    checkpoint = open_checkpoint(model_path)
    with ThreadPoolExecutor(1, thread_name_prefix="text") as pool:  # a large vocabulary takes as long as the weights
        loading = pool.submit(load_text, model_path, config.model.tokenizer, config.model.chat_template)
        spec = build_spec(checkpoint.config)
        resolved = resolve(config, spec, model_path, *native_facts(spec))
        digest = checkpoint.content_digest()
        clock("weights", 0.0)
        executor = make_executor(resolved, checkpoint, spec, clock, digest)
        del checkpoint  # not closed: parameters may share the mapped file, which goes with the last of them
        clock("tokenizer", 0.0)
        text = loading.result()
    vocab_size = executor.info.vocab_size
    grammars = GrammarBackend(
        text.tokenizer, vocab_size=vocab_size, eos_token_ids=text.eos_token_ids, threads=resolved.threads
    )
    sampler = Sampler(vocab_size, resolved.seed, grammars, rejects_drafts=resolved.rejects_drafts)
    core = EngineCore(
        resolved,
        executor,
        sampler,
        make_scheduler(resolved, executor.info, digest),
        eos_token_ids=text.eos_token_ids,
        speculator=make_speculator(config, resolved, sampler, text.tokenizer, clock),
    )
    return LoadedEngine(core, describe(resolved, spec.family, executor.info, text.eos_token_ids, clock.finish()), text)


def make_scheduler(resolved: ResolvedConfig, executor: ExecutorInfo, weights_digest: str) -> Scheduler:
    """Returns a scheduler over the cache that the executor has memory for."""
    hasher = BlockHasher(
        block_size=executor.block_size, weights_digest=weights_digest, dtype=f"{executor.dtype}/{executor.cache_dtype}"
    )
    return Scheduler(
        SchedulerLimits(
            max_batch_tokens=resolved.max_batch_tokens,
            max_sequences=resolved.max_sequences,
            max_queue=resolved.max_queue,
            max_model_len=resolved.max_model_len,
        ),
        KVCache(executor.num_blocks, hasher, enable_prefix=resolved.enable_prefix_cache),
    )


def make_speculator(
    config: EngineConfig, resolved: ResolvedConfig, sampler: Sampler, tokenizer: Tokenizer, clock: StageClock
) -> Speculator:
    """Returns what guesses tokens ahead, as decided; loads the draft model if there is one.

    Raises:
        CheckpointError: The draft model's files are missing or broken.
        ConfigError: It cannot run here, or has another vocabulary.
        MemoryError: It does not fit.
    """
    most = resolved.speculation_max_tokens
    if resolved.speculation == "off":
        return NoSpeculator()
    if resolved.speculation == "ngram":
        return NgramSpeculator(SpeculationPolicy(most), most)
    clock("draft model", 0.0)
    path = resolved.draft_model_path
    if load_text(path).tokenizer.vocabulary_bytes() != tokenizer.vocabulary_bytes():
        raise ConfigError(
            f"The draft model {path} has another vocabulary than the model.",
            fix="Take a smaller model of the same family, with the same tokenizer.",
            param="speculation.draft_model",
        )
    checkpoint = open_checkpoint(path)
    spec = build_spec(checkpoint.config)
    decided = resolve_draft(config, spec, resolved, *native_facts(spec))
    executor = make_executor(decided, checkpoint, spec, lambda _, fraction: clock("draft model", fraction))
    limits = DraftLimits(decided.max_batch_tokens, decided.max_sequences, decided.max_model_len)
    policy = SpeculationPolicy(most, first_credit=FIRST_CREDIT, most_credit=MOST_CREDIT)
    model = DraftModel(executor, limits, sampler)
    model.warm()
    return DraftSpeculator(model, policy, most)


def describe(
    resolved: ResolvedConfig,
    family: str,
    executor: ExecutorInfo,
    eos_token_ids: Iterable[int],
    load_seconds: dict[str, float],
) -> EngineInfo:
    """Returns what an engine made of these parts says of itself."""
    return EngineInfo(
        model=resolved.model_name,
        family=family,
        dtype=resolved.dtype,
        dtype_reason=resolved.dtype_reason,
        cache_dtype=executor.cache_dtype,
        executor=executor.name,
        isa=executor.isa,
        threads=executor.threads,
        vocab_size=executor.vocab_size,
        max_model_len=resolved.max_model_len,
        num_blocks=executor.num_blocks,
        block_size=executor.block_size,
        weight_bytes=executor.weight_bytes,
        cache_bytes=executor.cache_bytes,
        eos_token_ids=sorted(eos_token_ids),
        load_seconds=load_seconds,
        max_sequences=min(resolved.max_sequences, resolved.max_batch_tokens),
        max_queue=resolved.max_queue,
    )

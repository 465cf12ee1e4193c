"""Turns what was asked for into what runs. The only place where a default is computed.

Pure of torch: takes the model's spec, the checkpoint's size and the machine's facts, and returns a `ResolvedConfig` or
raises `ConfigError` with what to change. Called by the engine process and by `LLM`.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, cast

from millpond.api.model_spec import ModelSpec
from millpond.base.errors import ConfigError
from millpond.config.resolved import ResolvedConfig
from millpond.config.schema import EngineConfig, SpeculationConfig

ISA_ORDER = ("none", "avx2", "avx512", "avx512_bf16", "amx")
BLOCK_SIZES = (32, 64, 128)
MAX_THREADS = 256
CACHE_SHARE = 0.25  # of the memory that is free once the parameters are in
CACHE_LARGEST = 4 << 30
DEFAULT_BATCH_TOKENS = 512
DEFAULT_SEQUENCES = 64
DEFAULT_QUEUE = 256
DEFAULT_GUESSES = 8
MOST_GUESSES = 64
DEFAULT_PACKED_BYTES = 32 << 30
DEFAULT_MAX_LEN = 131072  # longer only when asked for: rotary tables and block tables grow with it

DTypeChoice = Literal["float32", "bfloat16", "int8", "w8a8", "int4"]
CacheChoice = Literal["float32", "bfloat16", "int8"]


@dataclass(frozen=True, slots=True)
class Hardware:
    """What the decisions depend on. `native_isa` is what the built library can use here, "none" without one."""

    native_isa: str
    cores: int
    memory_available: int


def resolve(
    config: EngineConfig, spec: ModelSpec, model_path: str, hardware: Hardware, native_obstacle: str = ""
) -> ResolvedConfig:
    """Decides everything.

    Args:
        config: What the user asked for.
        spec: The model that will run.
        model_path: Its directory or file.
        hardware: The machine.
        native_obstacle: Why the native library cannot run this model's shape; empty when it can.

    Raises:
        ConfigError: Something asked for cannot be done; says what to change.
    """
    executor = _executor(config, hardware, native_obstacle)
    isa = _isa(config, hardware) if executor == "native" else "none"
    dtype, reason = _dtype(config, executor, isa)
    cache_dtype = _cache_dtype(config, dtype)
    block_size = _one_of("cache.block_size", config.cache.block_size, BLOCK_SIZES, 32)
    max_len = _max_len(config, spec)
    num_blocks, max_len = _num_blocks(
        config, hardware, max_len, block_size, _block_bytes(spec, block_size, cache_dtype)
    )
    max_sequences = _between("scheduler.max_sequences", config.scheduler.max_sequences, 1, 4096, DEFAULT_SEQUENCES)
    return ResolvedConfig(
        model_path=model_path,
        model_name=config.model.served_name or _name_of(config, model_path),
        tokenizer_path=config.model.tokenizer,
        chat_template_path=config.model.chat_template,
        dtype=dtype,
        dtype_reason=reason,
        packed_bytes=_between("model.packed_bytes", config.model.packed_bytes, 0, 1 << 50, DEFAULT_PACKED_BYTES),
        max_model_len=max_len,
        cache_dtype=cache_dtype,
        block_size=block_size,
        num_blocks=num_blocks,
        enable_prefix_cache=config.cache.prefix is not False,
        max_batch_tokens=_max_batch_tokens(config, max_sequences),
        max_sequences=max_sequences,
        max_queue=_between("scheduler.max_queue", config.scheduler.max_queue, 1, 1_000_000, DEFAULT_QUEUE),
        speculation=_speculation(config, executor),
        speculation_max_tokens=_max_guesses(config),
        draft_model_path=config.speculation.draft_model or "",
        rejects_drafts=config.runtime.seed is None,
        executor=executor,
        isa=cast("Literal['amx', 'avx512_bf16', 'avx512', 'avx2', 'none']", isa),
        threads=_between("runtime.threads", config.runtime.threads, 1, MAX_THREADS, max(1, hardware.cores)),
        deterministic=_is_deterministic(config, executor),
        seed=secrets.randbits(63) if config.runtime.seed is None else config.runtime.seed,
    )


def _is_deterministic(config: EngineConfig, executor: str) -> bool:
    asked = config.runtime.deterministic
    return executor == "native" if asked is None else asked


def _max_guesses(config: EngineConfig) -> int:
    return _between("speculation.max_tokens", config.speculation.max_tokens, 1, MOST_GUESSES, DEFAULT_GUESSES)


def _max_batch_tokens(config: EngineConfig, max_sequences: int) -> int:
    default = max(DEFAULT_BATCH_TOKENS, max_sequences)
    return _between("scheduler.max_batch_tokens", config.scheduler.max_batch_tokens, max_sequences, 65536, default)


def _speculation(config: EngineConfig, executor: str) -> Literal["off", "ngram", "draft"]:
    asked, has_model = config.speculation.mode or "auto", bool(config.speculation.draft_model)
    if config.speculation.draft_dtype and not has_model:
        raise ConfigError(
            "speculation.draft_dtype was set and there is no draft model.",
            fix="Set speculation.draft_model too, or leave speculation.draft_dtype out.",
            param="speculation.draft_dtype",
        )
    if asked == "draft" and not has_model:
        raise ConfigError(
            "Speculation with a draft model was asked for and no model was given.",
            fix="Set speculation.draft_model, or speculation.mode to ngram.",
            param="speculation.draft_model",
        )
    if asked == "ngram" and has_model:
        raise ConfigError(
            "speculation.mode ngram has no use for a draft model.",
            fix="Leave speculation.draft_model out, or set speculation.mode to draft.",
            param="speculation.mode",
        )
    if asked != "auto":
        return asked
    if has_model:
        return "draft"
    return "ngram" if _is_deterministic(config, executor) else "off"


def resolve_draft(
    config: EngineConfig, spec: ModelSpec, target: ResolvedConfig, hardware: Hardware, native_obstacle: str = ""
) -> ResolvedConfig:
    """Decides how the draft model runs beside the model it guesses for, with as many blocks as that one has.

    Args:
        config: What the user asked for.
        spec: The draft model.
        target: What was decided for the model itself.
        hardware: The machine.
        native_obstacle: Why the native library cannot run the draft model's shape; empty when it can.

    Raises:
        ConfigError: Something asked for cannot be done with the draft model.
    """
    asked = replace(
        config,
        model=replace(
            config.model,
            dtype=config.speculation.draft_dtype or config.model.dtype,
            max_len=min(target.max_model_len, spec.max_position),
        ),
        cache=replace(
            config.cache,
            dtype="int8" if target.cache_dtype == "int8" else None,
            block_size=target.block_size,
            bytes=target.num_blocks * _block_bytes(spec, target.block_size, "float32"),
        ),
        speculation=SpeculationConfig(mode="off"),
    )
    resolved = resolve(asked, spec, target.draft_model_path, hardware, native_obstacle)
    return replace(resolved, num_blocks=min(resolved.num_blocks, target.num_blocks))


def _executor(config: EngineConfig, hardware: Hardware, obstacle: str) -> Literal["native", "reference"]:
    asked = config.runtime.executor
    if asked == "reference":
        return "reference"
    if hardware.native_isa == "none":
        obstacle = "the native library was not built or this processor has no AVX2"
    if asked == "native" and obstacle:
        raise ConfigError(
            f"The native executor cannot run this model: {obstacle}.",
            fix="Use --runtime.executor auto; `millpond doctor` says what is missing.",
            param="runtime.executor",
        )
    return "reference" if obstacle else "native"


def _isa(config: EngineConfig, hardware: Hardware) -> str:
    asked = config.runtime.isa
    if asked in (None, "auto"):
        return hardware.native_isa
    if ISA_ORDER.index(str(asked)) > ISA_ORDER.index(hardware.native_isa):
        raise ConfigError(
            f"This machine cannot run {asked} kernels.",
            fix=f"The best it can is {hardware.native_isa}; leave runtime.isa at auto to use it.",
            param="runtime.isa",
        )
    return str(asked)


def _dtype(config: EngineConfig, executor: str, isa: str) -> tuple[DTypeChoice, str]:
    asked = config.model.dtype
    if asked is not None and asked != "auto":
        return asked, "asked for"
    if executor == "native" and isa in ("amx", "avx512_bf16"):
        return "bfloat16", f"auto: {isa} multiplies bfloat16 and half the bytes of float32 are read a token"
    if executor == "native":
        return "bfloat16", "auto: half the bytes of float32 are read a token, which decode waits for"
    return "float32", "auto: the torch reference is fastest in float32"


def _max_len(config: EngineConfig, spec: ModelSpec) -> int:
    if config.model.max_len is None:
        return min(spec.max_position, DEFAULT_MAX_LEN)
    asked = _between("model.max_len", config.model.max_len, 1, 1 << 24, 0)
    if spec.learned_positions and asked > spec.max_position:
        raise ConfigError(
            f"This model has positions for {spec.max_position} tokens only; {asked} were asked for.",
            fix=f"Set model.max_len to {spec.max_position} or less.",
            param="model.max_len",
        )
    return asked


def _cache_dtype(config: EngineConfig, dtype: DTypeChoice) -> CacheChoice:
    asked = config.cache.dtype
    own: CacheChoice = "float32" if dtype == "float32" else "bfloat16"
    if asked in (None, "auto"):
        return "int8" if dtype == "w8a8" else own  # rows of 8 bits already; such a cache is quicker and as exact
    if asked == "int8":
        return "int8"
    if asked != own:
        raise ConfigError(
            f"A {dtype} model keeps its KV cache in {own} or int8; {asked} was asked for.",
            fix=f"Leave cache.dtype at auto, or change model.dtype (now {dtype}).",
            param="cache.dtype",
        )
    return own


def _block_bytes(spec: ModelSpec, block_size: int, cache_dtype: CacheChoice) -> int:
    row_bytes = {"float32": 4 * spec.head_dim, "bfloat16": 2 * spec.head_dim, "int8": spec.head_dim + 4}[cache_dtype]
    return 2 * spec.num_layers * spec.num_kv_heads * block_size * row_bytes


def _num_blocks(
    config: EngineConfig, hardware: Hardware, max_len: int, block_size: int, block_bytes: int
) -> tuple[int, int]:
    """Blocks of the cache, and the longest sequence, cut to the cache when neither was asked for."""
    size_bytes = config.cache.bytes
    if size_bytes is None:
        size_bytes = int(min(CACHE_LARGEST, max(0, hardware.memory_available) * CACHE_SHARE))
    num_blocks = size_bytes // block_bytes
    needed = -(-max_len // block_size)
    if num_blocks < needed and config.model.max_len is None:
        max_len = num_blocks * block_size
    elif num_blocks < needed:
        raise ConfigError(
            f"A sequence of {max_len} tokens needs {needed * block_bytes / 1e6:.0f} MB of KV cache; "
            f"it has {size_bytes / 1e6:.0f} MB.",
            fix="Raise cache.bytes or lower model.max_len.",
            param="cache.bytes",
        )
    if num_blocks < 2:
        raise ConfigError(
            f"The KV cache of {size_bytes / 1e6:.1f} MB holds less than two blocks of {block_bytes / 1e6:.1f} MB.",
            fix="Raise cache.bytes or free memory.",
            param="cache.bytes",
        )
    return num_blocks, max_len


def _name_of(config: EngineConfig, model_path: str) -> str:
    asked = config.model.path
    if asked and "/" not in asked and not asked.endswith(".gguf"):
        return asked
    path = Path(model_path)
    return path.stem if path.suffix == ".gguf" else path.resolve().name


def _between(name: str, value: int | None, low: int, high: int, default: int) -> int:
    if value is None:
        return default
    if not low <= value <= high:
        raise ConfigError(f"{name} is {value}; it must be from {low} to {high}.", param=name)
    return value


def _one_of(name: str, value: int | None, allowed: tuple[int, ...], default: int) -> int:
    if value is None:
        return default
    if value not in allowed:
        raise ConfigError(f"{name} is {value}; it must be one of {', '.join(map(str, allowed))}.", param=name)
    return value

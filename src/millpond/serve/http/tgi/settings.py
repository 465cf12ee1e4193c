"""`TgiSettings`: the TGI port's settings with every default decided.

`resolve_tgi` is the only place where a default of this port is decided. The longest prompt and the longest request
depend on the engine, which is known later: `Limits` holds them once it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from millpond.api.request import EngineInfo
from millpond.api.validate import MAX_LOGPROBS, MAX_STOP_STRINGS
from millpond.base.errors import ConfigError
from millpond.config.schema import TgiConfig
from millpond.serve.keys import ApiKeys
from millpond.serve.settings import ServeSettings

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TgiSettings:
    """How the TGI port behaves.

    Attributes:
        is_strict: Proper status codes and errors in place of TGI's own, and no field ignored.
        max_input_tokens: Longest prompt; None: one less than the longest request.
        max_total_tokens: Longest prompt plus output; None: what the engine holds.
    """

    host: str = "127.0.0.1"
    port: int = 3000
    is_strict: bool = False
    keys: ApiKeys | None = None
    origins: tuple[str, ...] = ()
    max_concurrent_requests: int = 128
    max_best_of: int = 2
    max_stop_sequences: int = 4
    max_top_n_tokens: int = 5
    max_input_tokens: int | None = None
    max_total_tokens: int | None = None
    max_client_batch_size: int = 4
    max_body_bytes: int = 2_000_000
    has_grammar: bool = True

    def limits(self, info: EngineInfo) -> Limits:
        """Returns what fits an engine."""
        holds = min(info.max_model_len, info.num_blocks * info.block_size + 1)
        total = holds if self.max_total_tokens is None else min(self.max_total_tokens, holds)
        most = total - 1
        return Limits(most if self.max_input_tokens is None else min(self.max_input_tokens, most), total)


@dataclass(frozen=True, slots=True)
class Limits:
    """The longest prompt and the longest request, tokens."""

    max_input_tokens: int
    max_total_tokens: int


def resolve_tgi(config: TgiConfig, serve: ServeSettings) -> TgiSettings:
    """Returns the settings for what was asked for; `serve` are those of the whole server.

    Raises:
        ConfigError: Two values do not fit each other.
    """
    made = TgiSettings()
    settings = TgiSettings(
        host=_chosen(config.host, serve.host),
        port=_chosen(config.port, made.port),
        is_strict=config.form == "strict",
        keys=serve.keys if config.api_key is None else ApiKeys([config.api_key]),
        origins=tuple(part.strip() for part in (config.cors_allow_origin or "").split(",") if part.strip()),
        max_concurrent_requests=_chosen(config.max_concurrent_requests, made.max_concurrent_requests),
        max_best_of=_chosen(config.max_best_of, made.max_best_of),
        max_stop_sequences=_chosen(config.max_stop_sequences, made.max_stop_sequences),
        max_top_n_tokens=_chosen(config.max_top_n_tokens, made.max_top_n_tokens),
        max_input_tokens=config.max_input_tokens,
        max_total_tokens=config.max_total_tokens,
        max_client_batch_size=_chosen(config.max_client_batch_size, made.max_client_batch_size),
        max_body_bytes=_chosen(config.max_body_bytes, made.max_body_bytes),
        has_grammar=config.grammar is not False,
    )
    _check(settings)
    return settings


def _chosen(asked: T | None, default: T) -> T:
    return default if asked is None else asked


def _check(settings: TgiSettings) -> None:
    longest, most = settings.max_input_tokens, settings.max_total_tokens
    if longest is not None and most is not None and longest >= most:
        raise ConfigError(
            f"tgi.max_input_tokens is {longest} and tgi.max_total_tokens is {most}.",
            fix="The total has to be larger: output comes after the prompt.",
            param="tgi.max_input_tokens",
        )
    for name, value, limit in (
        ("max_top_n_tokens", settings.max_top_n_tokens, MAX_LOGPROBS),
        ("max_stop_sequences", settings.max_stop_sequences, MAX_STOP_STRINGS),
    ):
        if value > limit:
            raise ConfigError(f"tgi.{name} is {value}.", fix=f"The engine takes {limit} at most.", param=f"tgi.{name}")

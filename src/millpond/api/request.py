"""The one internal request and the one internal event, whatever protocol a client speaks.

Adapters translate into `Request` and out of `OutputEvent`; the engine knows nothing else. Everything here is a frozen
msgspec struct so that the same type is validated at the border and sent over the engine's socket. No torch, no I/O.
"""

from __future__ import annotations

from typing import Literal

import msgspec

FinishReason = Literal["stop", "length", "cancelled", "deadline", "error"]
GrammarKind = Literal["json_object", "json_schema", "regex", "choice", "lark"]


class GrammarSpec(msgspec.Struct, frozen=True):
    """A constraint on the generated text.

    `source` holds the JSON schema (as JSON text), the regular expression, the JSON list of choices or the Lark grammar;
    it is empty for `json_object`.
    """

    kind: GrammarKind
    source: str = ""


class SamplingParams(msgspec.Struct, frozen=True, omit_defaults=True):
    """How to choose tokens. Field names and meanings follow what vLLM and OpenAI users know.

    `temperature == 0` is greedy. `top_k <= 0` means all tokens. `seed` makes the sequence's tokens a function of the
    prompt and these parameters alone, whatever else is in the batch. `logprobs`/`prompt_logprobs` are the number of
    alternatives to report beside the chosen token (0: the chosen one alone; None: none at all). The last token of a
    sequence in `bad_words_ids` is not chosen where the ones before it were the last of prompt and output.
    Checked by `millpond.api.validate.check_sampling`, which raises `RequestError`.
    """

    n: int = 1
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] | None = None
    bad_words_ids: tuple[tuple[int, ...], ...] = ()
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: tuple[str, ...] = ()
    stop_token_ids: tuple[int, ...] = ()
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    grammar: GrammarSpec | None = None
    beam_width: int = 1
    length_penalty: float = 1.0
    early_stopping: bool = False


class Request(msgspec.Struct, frozen=True):
    """One admitted request: tokens in, sampling parameters, and what the scheduler needs to know.

    Lower `priority` runs first. `deadline_s` is seconds from arrival. `cache_salt` separates tenants in the prefix
    cache: two requests share blocks only when their salts are equal.
    """

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    priority: int = 0
    deadline_s: float | None = None
    cache_salt: str = ""


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """Log-probability (natural log, of the distribution before temperature and truncation) of one token position.

    `rank` is 1 for the most likely token. `top` lists the most likely alternatives as (token id, logprob), best first.
    """

    token_id: int
    logprob: float
    rank: int
    top: list[tuple[int, float]]


class ErrorInfo(msgspec.Struct, frozen=True):
    """An error that reached a request after admission; `code` is a `MillpondError.code`."""

    code: str
    message: str


class OutputEvent(msgspec.Struct, frozen=True):
    """What happened to one of a request's sequences since the last event; `index` counts the n choices.

    `text` and `token_ids` are deltas. The first event of index 0 carries `prompt_logprobs` when they were asked for
    (one entry per prompt token, None for the first). `finish_reason` is set on the last event of each index.
    `stop_reason` is the stop string or stop token id that ended it, None for the end-of-sequence token or length.
    `queue_s` is set on the first event of each index: seconds between admission and the sequence's first step.
    """

    request_id: str
    index: int
    text: str
    token_ids: list[int]
    logprobs: list[TokenLogprob] | None = None
    prompt_logprobs: list[TokenLogprob | None] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    num_cached_tokens: int = 0
    error: ErrorInfo | None = None
    queue_s: float | None = None


class EngineStats(msgspec.Struct, frozen=True):
    """Counters and gauges of one engine, sent with every step. Counters never go down while the engine lives."""

    num_running: int = 0
    num_waiting: int = 0
    num_blocks: int = 0
    num_free_blocks: int = 0
    num_cached_blocks: int = 0
    steps_total: int = 0
    prompt_tokens_total: int = 0
    output_tokens_total: int = 0
    prefix_query_tokens_total: int = 0
    prefix_hit_tokens_total: int = 0
    preemptions_total: int = 0
    draft_tokens_total: int = 0
    accepted_draft_tokens_total: int = 0
    step_seconds_total: float = 0.0
    kernel_seconds_total: float = 0.0


class EngineInfo(msgspec.Struct, frozen=True):
    """What an engine says of itself once it is ready."""

    model: str
    family: str
    dtype: str
    dtype_reason: str
    cache_dtype: str
    executor: str
    isa: str
    threads: int
    vocab_size: int
    max_model_len: int
    num_blocks: int
    block_size: int
    weight_bytes: int
    cache_bytes: int
    eos_token_ids: list[int]
    load_seconds: dict[str, float]
    max_sequences: int = 0
    max_queue: int = 0

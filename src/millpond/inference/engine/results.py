"""What `LLM` returns: finished requests in the shape that vLLM's users know.

Plain dataclasses and the translation from output events into them. No torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from millpond.api.request import ErrorInfo, FinishReason, OutputEvent, TokenLogprob


@dataclass(frozen=True, slots=True)
class Logprob:
    """Log-probability of a token, its rank (1: the likeliest; None: not known) and its text."""

    logprob: float
    rank: int | None
    decoded_token: str


@dataclass(frozen=True, slots=True)
class CompletionOutput:
    """One continuation.

    Attributes:
        cumulative_logprob: Sum over its tokens; None unless log-probabilities were asked for.
        logprobs: For each token the chosen one and the likeliest others, by token id.
        stop_reason: The stop string or stop token that ended it; None for end of sequence and length.
        error: Why `finish_reason` is "error" or "deadline".
    """

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None = None
    logprobs: list[dict[int, Logprob]] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    error: ErrorInfo | None = None


@dataclass(frozen=True, slots=True)
class RequestOutput:
    """A prompt and its continuations. `prompt` is None for a prompt given as token ids."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    outputs: list[CompletionOutput]
    prompt_logprobs: list[dict[int, Logprob] | None] | None = None
    finished: bool = True
    num_cached_tokens: int = 0


def make_completion(event: OutputEvent, decode: Callable[[int], str]) -> CompletionOutput:
    """Returns the continuation that one event with all of a sequence's output tells."""
    chosen = event.logprobs
    return CompletionOutput(
        index=event.index,
        text=event.text,
        token_ids=event.token_ids,
        cumulative_logprob=None if chosen is None else sum(token.logprob for token in chosen),
        logprobs=None if chosen is None else [_by_token_id(token, decode) for token in chosen],
        finish_reason=event.finish_reason,
        stop_reason=event.stop_reason,
        error=event.error,
    )


def make_prompt_logprobs(
    tokens: Iterable[TokenLogprob | None] | None, decode: Callable[[int], str]
) -> list[dict[int, Logprob] | None] | None:
    """Returns a prompt's log-probabilities by token id; the first token has none."""
    if tokens is None:
        return None
    return [None if token is None else _by_token_id(token, decode) for token in tokens]


def _by_token_id(token: TokenLogprob, decode: Callable[[int], str]) -> dict[int, Logprob]:
    chosen = {token.token_id: Logprob(token.logprob, token.rank, decode(token.token_id))}
    for rank, (token_id, logprob) in enumerate(token.top, 1):
        chosen.setdefault(token_id, Logprob(logprob, rank, decode(token_id)))
    return chosen

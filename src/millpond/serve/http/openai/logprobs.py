"""Token log-probabilities in the two shapes of the OpenAI API and in vLLM's shape for prompts.

Reads `TokenLogprob`s and the tokenizer; called by the completion and chat adapters.
"""

from __future__ import annotations

from codecs import getincrementaldecoder
from collections.abc import Sequence

import msgspec

from millpond.api.request import TokenLogprob
from millpond.inference.text import Tokenizer

_LOWEST = -9999.0  # JSON has no infinity; this is what the API shows for "impossible"


class TopLogprob(msgspec.Struct, frozen=True):
    """One alternative of a chat token."""

    token: str
    logprob: float
    bytes: list[int]


class ContentLogprob(msgspec.Struct, frozen=True):
    """One token of a chat answer."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """The tokens of a chat answer or chunk."""

    content: list[ContentLogprob]
    refusal: None = None


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """The tokens of a completion or chunk, as parallel lists."""

    text_offset: list[int]
    token_logprobs: list[float | None]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None] | None


class PromptLogprob(msgspec.Struct, frozen=True):
    """One token at one place of a prompt, as vLLM shows it."""

    logprob: float
    rank: int
    decoded_token: str


def chat_logprobs(tokens: list[TokenLogprob], tokenizer: Tokenizer, num_top: int) -> ChatLogprobs:
    """Returns the chat shape with `num_top` alternatives a token."""
    return ChatLogprobs([_content(token, tokenizer, num_top) for token in tokens])


def _content(token: TokenLogprob, tokenizer: Tokenizer, num_top: int) -> ContentLogprob:
    raw = tokenizer.token_bytes(token.token_id)
    return ContentLogprob(
        token=raw.decode("utf-8", "replace"),
        logprob=_finite(token.logprob),
        bytes=list(raw),
        top_logprobs=[_top(token_id, logprob, tokenizer) for token_id, logprob in token.top[:num_top]],
    )


def _top(token_id: int, logprob: float, tokenizer: Tokenizer) -> TopLogprob:
    raw = tokenizer.token_bytes(token_id)
    return TopLogprob(raw.decode("utf-8", "replace"), _finite(logprob), list(raw))


class CompletionLogprobsBuilder:
    """Builds the completion shape piece by piece; `text_offset` counts on from the last piece.

    Args:
        tokenizer: To name the tokens.
        num_top: Alternatives a token; the chosen one is added where it is not among them.
        offset: Where the first token's text begins.
    """

    def __init__(self, tokenizer: Tokenizer, num_top: int, offset: int = 0) -> None:
        self._tokenizer = tokenizer
        self._num_top = num_top
        self._offset = offset
        self._characters = getincrementaldecoder("utf-8")("replace")  # a token may hold half a character

    def build(self, token_ids: list[int], tokens: Sequence[TokenLogprob | None]) -> CompletionLogprobs:
        """Returns the next tokens; a place without numbers (a prompt's first token) gets null."""
        offsets = []
        for token_id in token_ids:
            offsets.append(self._offset)
            self._offset += len(self._characters.decode(self._tokenizer.token_bytes(token_id)))
        return CompletionLogprobs(
            text_offset=offsets,
            token_logprobs=[None if token is None else _finite(token.logprob) for token in tokens],
            tokens=[_name(token_id, self._tokenizer) for token_id in token_ids],
            top_logprobs=[self._alternatives(token) for token in tokens] if self._num_top else None,
        )

    def _alternatives(self, token: TokenLogprob | None) -> dict[str, float] | None:
        if token is None:
            return None
        top = {_name(token_id, self._tokenizer): _finite(logprob) for token_id, logprob in token.top[: self._num_top]}
        top.setdefault(_name(token.token_id, self._tokenizer), _finite(token.logprob))
        return top


def joined(parts: list[CompletionLogprobs]) -> CompletionLogprobs:
    """Returns several pieces as one."""
    has_top = any(part.top_logprobs is not None for part in parts)
    return CompletionLogprobs(
        text_offset=[offset for part in parts for offset in part.text_offset],
        token_logprobs=[logprob for part in parts for logprob in part.token_logprobs],
        tokens=[token for part in parts for token in part.tokens],
        top_logprobs=[top for part in parts for top in part.top_logprobs or ()] if has_top else None,
    )


def prompt_logprobs(tokens: list[TokenLogprob | None], tokenizer: Tokenizer) -> list[dict[str, PromptLogprob] | None]:
    """Returns vLLM's shape: per prompt token a map of token id to its numbers, null for the first."""
    return [None if token is None else _prompt_entry(token, tokenizer) for token in tokens]


def _prompt_entry(token: TokenLogprob, tokenizer: Tokenizer) -> dict[str, PromptLogprob]:
    entry = {str(token.token_id): PromptLogprob(_finite(token.logprob), token.rank, _name(token.token_id, tokenizer))}
    for rank, (token_id, logprob) in enumerate(token.top, 1):
        entry.setdefault(str(token_id), PromptLogprob(_finite(logprob), rank, _name(token_id, tokenizer)))
    return entry


def _name(token_id: int, tokenizer: Tokenizer) -> str:
    raw = tokenizer.token_bytes(token_id)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:  # half a character; names are keys, so they must differ
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)


def _finite(logprob: float) -> float:
    return logprob if logprob > _LOWEST else _LOWEST

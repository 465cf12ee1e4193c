"""Tokens as TGI shows them: the text a token adds, its log-probability, whether it is special.

A token's text is what it adds to the text of those before it, special tokens spelled out; a token that ends inside of a
character adds nothing and the next one the whole character. Used for whole answers and streams alike.
"""

from __future__ import annotations

import math

from millpond.api.request import TokenLogprob
from millpond.inference.text import IncrementalDetokenizer, Tokenizer
from millpond.serve.http.tgi.replies import PrefillToken, Token

_LOWEST = -9999.0  # JSON has no infinity


class TokenTexts:
    """The tokens of one sequence, in order."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = IncrementalDetokenizer(tokenizer, skip_special_tokens=False)

    def add(self, number: TokenLogprob, is_last: bool) -> Token:
        """Returns the next token."""
        text = self._stream.push((number.token_id,))
        if is_last:
            text += self._stream.flush()
        return Token(number.token_id, text, finite(number.logprob), self._tokenizer.is_special(number.token_id))

    def top(self, number: TokenLogprob, count: int) -> list[Token]:
        """Returns the likeliest tokens at a place, best first."""
        return [
            Token(
                token_id,
                self._tokenizer.decode([token_id], skip_special_tokens=False),
                finite(logprob),
                self._tokenizer.is_special(token_id),
            )
            for token_id, logprob in number.top[:count]
        ]


def prefill_tokens(
    token_ids: list[int], numbers: list[TokenLogprob | None] | None, tokenizer: Tokenizer
) -> list[PrefillToken]:
    """Returns the tokens of a prompt, none if its numbers were not asked for."""
    if numbers is None:
        return []
    return [
        PrefillToken(
            token_id,
            tokenizer.decode([token_id], skip_special_tokens=False),
            None if number is None else finite(number.logprob),
        )
        for token_id, number in zip(token_ids, numbers, strict=True)
    ]


def finite(logprob: float) -> float:
    """Returns a log-probability that JSON can hold."""
    return logprob if math.isfinite(logprob) and logprob > _LOWEST else _LOWEST

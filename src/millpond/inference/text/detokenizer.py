"""Tokens to text while they arrive: whole characters, in linear time.

One instance a sequence. Concatenating every `push` and the `flush` gives what `Tokenizer.decode` gives for all the
tokens at once. No torch; used by the gateway's client and by the in-process `LLM`.
"""

from __future__ import annotations

from collections.abc import Iterable

from millpond.inference.text.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """Turns one sequence's tokens into text deltas; never gives out half a character."""

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._id_to_token = tokenizer.raw.id_to_token
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._stream = tokenizer.start_stream()

    def push(self, token_ids: Iterable[int]) -> str:
        """Takes the next tokens and returns the text they complete."""
        parts = []
        for token_id in token_ids:
            token = None if token_id in self._skipped else self._id_to_token(token_id)
            if token is not None:
                parts.append(self._stream.push(token))
        return "".join(parts)

    def flush(self) -> str:
        """Ends the text: returns what was held back, with U+FFFD for bytes that are no character."""
        return self._stream.flush()

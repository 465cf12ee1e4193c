"""Tokens to text while they arrive: whole characters, in linear time.

One instance a sequence. Concatenating every `push` and the `flush` gives what `Tokenizer.decode` gives for all the
tokens at once. No torch; used by the gateway's client and by the in-process `LLM`.
"""

from __future__ import annotations

from collections.abc import Sequence

from millpond.inference.text.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """Turns one sequence's tokens into text deltas; never gives out half a character."""

    __slots__ = ("_even_text", "_id_to_token", "_is_even", "_skipped", "_stream")

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._id_to_token = tokenizer.raw.id_to_token
        self._even_text = tokenizer.even_text
        self._skipped = tokenizer.special_ids if skip_special_tokens else frozenset()
        self._stream = tokenizer.start_stream()
        self._is_even = self._stream.is_even

    def push(self, token_ids: Sequence[int]) -> str:
        """Takes the next tokens and returns the text they complete."""
        if self._is_even and len(token_ids) == 1 and token_ids[0] not in self._skipped:
            text = self._even_text(token_ids[0])
            if text is not None:
                return text
        return self._push_any(token_ids)

    def _push_any(self, token_ids: Sequence[int]) -> str:
        parts = []
        for token_id in token_ids:
            token = None if token_id in self._skipped else self._id_to_token(token_id)
            if token is not None:
                parts.append(self._stream.push(token))
        self._is_even = self._stream.is_even
        return "".join(parts)

    def flush(self) -> str:
        """Ends the text: returns what was held back, with U+FFFD for bytes that are no character."""
        text = self._stream.flush()
        self._is_even = self._stream.is_even
        return text

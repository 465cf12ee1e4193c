"""`Tokenizer`: text to token ids and back, a thin wrapper on `tokenizers.Tokenizer`.

Adds what the library lacks: the bytes of a token, end-of-sequence ids, typed errors. No torch; used by the gateway
and, for grammars and stop strings, beside the engine. Says the same whatever was asked before, and is safe to share
between threads; it only remembers the texts of tokens it was asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import tokenizers

from millpond.base.errors import RequestError
from millpond.inference.text.decoding import (
    TextStream,
    byte_alphabet,
    even_text,
    make_stream,
    read_decoding,
    token_to_bytes,
)


class Tokenizer:
    """Encodes and decodes for one model.

    Args:
        raw: The tokenizer itself; its truncation and padding are switched off.
        eos_token_ids: Tokens that end a sequence.
        bos_token_id: The token a sequence starts with, if the model has one.

    Raises:
        CheckpointError: Its decoder is of a kind that cannot be streamed.
    """

    def __init__(
        self, raw: tokenizers.Tokenizer, *, eos_token_ids: Iterable[int] = (), bos_token_id: int | None = None
    ) -> None:
        raw.no_truncation()
        raw.no_padding()
        self.raw = raw
        self.eos_token_ids = tuple(dict.fromkeys(eos_token_ids))
        self.bos_token_id = bos_token_id
        self._decoding = read_decoding(raw.decoder)
        self._byte_of_letter = {letter: byte for byte, letter in byte_alphabet().items()}
        added = raw.get_added_tokens_decoder()
        self.special_ids = frozenset(token_id for token_id, token in added.items() if token.special)
        self._even_texts: dict[int, str | None] = {}
        self.vocab_size = max([raw.get_vocab_size(with_added_tokens=False), *(token_id + 1 for token_id in added)])

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Encodes text; `add_special_tokens` adds what the model wants around it (a beginning-of-sequence token).

        Special tokens that are spelled out in the text become those tokens either way. A rendered chat template
        brings its own, so encode it with False.

        Raises:
            RequestError: The text holds half of a surrogate pair, which no text has.
        """
        _check_text(text)
        return self.raw.encode(text, add_special_tokens=add_special_tokens).ids

    def encode_batch(self, texts: Sequence[str], add_special_tokens: bool = True) -> list[list[int]]:
        """Encodes many texts, in parallel where the library may."""
        for text in texts:
            _check_text(text)
        encodings = self.raw.encode_batch_fast(list(texts), add_special_tokens=add_special_tokens)
        return [encoding.ids for encoding in encodings]

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """Decodes tokens; ids outside the vocabulary (a model's padding rows) say nothing."""
        return self.raw.decode(list(token_ids), skip_special_tokens=skip_special_tokens)

    def token_text(self, token_id: int) -> str:
        """The token as the vocabulary spells it; empty when there is none."""
        return self.raw.id_to_token(token_id) or ""

    def token_bytes(self, token_id: int) -> bytes:
        """The bytes the token adds to a text; empty when there is none. Not always whole characters."""
        return token_to_bytes(self.token_text(token_id), self._decoding, self._byte_of_letter)

    def token_id(self, text: str) -> int | None:
        """The id of a token as the vocabulary spells it."""
        return self.raw.token_to_id(text)

    def vocabulary_bytes(self) -> list[bytes]:
        """`token_bytes` of every id below `vocab_size`, in order."""
        table = [b""] * self.vocab_size
        for text, token_id in self.raw.get_vocab(with_added_tokens=True).items():
            table[token_id] = token_to_bytes(text, self._decoding, self._byte_of_letter)
        return table

    def is_special(self, token_id: int) -> bool:
        """Whether decoding with `skip_special_tokens` leaves the token out."""
        return token_id in self.special_ids

    def even_text(self, token_id: int) -> str | None:
        """The text that a token adds to a stream that `is_even`; None where that is not certain before the next one."""
        try:
            return self._even_texts[token_id]
        except KeyError:
            token = self.raw.id_to_token(token_id)
            text = "" if token is None else even_text(token, self._decoding, self._byte_of_letter)
            if token is not None:  # ids come from clients too: what is no token must not fill the memory
                self._even_texts[token_id] = text
            return text

    def start_stream(self) -> TextStream:
        """Starts decoding token by token; see `IncrementalDetokenizer`."""
        return make_stream(self._decoding, self._byte_of_letter)


def _check_text(text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise RequestError(
            f"The text holds half of a surrogate pair at character {error.start}.", fix="Send valid Unicode text."
        ) from error

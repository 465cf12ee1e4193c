"""How a tokenizer's decoder turns tokens into text, as streams that take one token at a time.

`tokenizers` decodes whole lists only, and re-decoding a growing list costs quadratic time. A stream here holds no more
than the bytes that cannot be decided yet, and says in the end exactly what the decoder would have said. Called by
tokenizer.py and detokenizer.py; a decoder that has no stream is refused when the tokenizer is loaded.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from tokenizers import decoders

from millpond.base.errors import CheckpointError

METASPACE = "\u2581"  # "▁", SentencePiece's space
REPLACEMENT = "\ufffd"
_BYTE_TOKEN = re.compile("<0x[0-9A-Fa-f]{2}>")


@dataclass(frozen=True, slots=True)
class Decoding:
    """A decoder, understood.

    Attributes:
        kind: "byte_level" (GPT-2's alphabet), "sentencepiece" (▁ and <0xNN> bytes), "metaspace", or "words" (no
            decoder: tokens joined by spaces).
        strip: How many leading spaces of the text are dropped (sentencepiece).
        drops_first: Whether the first token loses its ▁ (metaspace).
    """

    kind: Literal["byte_level", "sentencepiece", "metaspace", "words"]
    strip: int = 0
    drops_first: bool = False


class TextStream(Protocol):
    """Text from tokens, in order. `flush` ends it: what was held back can no longer be completed."""

    @property
    def is_even(self) -> bool:
        """True when nothing is held back and a token that is `even_text` adds just that, whatever came before."""
        ...

    def push(self, token: str) -> str: ...

    def flush(self) -> str: ...


def read_decoding(decoder: decoders.Decoder | None) -> Decoding:
    """Understands a `tokenizers` decoder.

    Raises:
        CheckpointError: It is of a kind that cannot be streamed here.
    """
    if decoder is None:
        return Decoding("words")
    state = json.loads(decoder.__getstate__())
    steps = _steps(state)
    kinds = [step["type"] for step in steps]
    if kinds == ["ByteLevel"]:
        return Decoding("byte_level")
    if kinds == ["Metaspace"] and steps[0].get("replacement") == METASPACE:
        return Decoding("metaspace", drops_first=steps[0].get("prepend_scheme", "always") != "never")
    if kinds[:3] == ["Replace", "ByteFallback", "Fuse"] and kinds[3:] in ([], ["Strip"]):
        replace: dict[str, Any] = steps[0]
        strip: dict[str, Any] = steps[3] if len(steps) == 4 else {"content": " ", "start": 0, "stop": 0}
        is_space = replace.get("pattern") == {"String": METASPACE} and replace.get("content") == " "
        if is_space and strip.get("content") == " " and strip.get("stop") == 0:
            return Decoding("sentencepiece", strip=int(strip["start"]))
    raise CheckpointError(
        f"The tokenizer's decoder ({' + '.join(kinds) or 'empty'}) is not supported.",
        fix="Millpond reads byte-level and SentencePiece tokenizers.",
    )


def _steps(state: dict[str, Any]) -> list[dict[str, Any]]:
    if state.get("type") == "Sequence":
        return [step for inner in state["decoders"] for step in _steps(inner)]
    return [state]


def byte_alphabet() -> dict[int, str]:
    """GPT-2's letter for each byte: printable ones are themselves, the others move up from U+0100."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    letters = {byte: chr(byte) for byte in printable}
    hidden = (byte for byte in range(256) if byte not in letters)
    return letters | {byte: chr(0x100 + index) for index, byte in enumerate(hidden)}


def fallback_byte(token: str) -> int | None:
    """The byte a SentencePiece token such as <0x0A> stands for."""
    return int(token[3:5], 16) if _BYTE_TOKEN.fullmatch(token) else None


def token_to_bytes(token: str, decoding: Decoding, byte_of_letter: Mapping[str, int]) -> bytes:
    """The bytes a token adds to the text, wherever it stands (leading spaces that are dropped are not counted)."""
    if decoding.kind == "byte_level":
        try:
            return bytes([byte_of_letter[letter] for letter in token])
        except KeyError:  # an added token that is written as it is
            return token.encode("utf-8")
    if decoding.kind == "words":
        return token.encode("utf-8")
    if decoding.kind == "sentencepiece" and (byte := fallback_byte(token)) is not None:
        return bytes([byte])
    return token.replace(METASPACE, " ").encode("utf-8")


def even_text(token: str, decoding: Decoding, byte_of_letter: Mapping[str, int]) -> str | None:
    """The text that a token adds to an even stream, leaving it even; None where that depends on what comes after it."""
    if decoding.kind == "words" or (decoding.kind == "sentencepiece" and fallback_byte(token) is not None):
        return None
    try:
        return token_to_bytes(token, decoding, byte_of_letter).decode("utf-8")
    except UnicodeDecodeError:
        return None


def make_stream(decoding: Decoding, byte_of_letter: Mapping[str, int]) -> TextStream:
    """Starts the stream for a decoder."""
    if decoding.kind == "byte_level":
        return _ByteLevelStream(decoding, byte_of_letter)
    if decoding.kind == "sentencepiece":
        return _SentencePieceStream(decoding.strip)
    if decoding.kind == "metaspace":
        return _MetaspaceStream(decoding.drops_first)
    return _WordStream()


class _ByteLevelStream:
    """Holds back the bytes of a character that is not complete."""

    def __init__(self, decoding: Decoding, byte_of_letter: Mapping[str, int]) -> None:
        self._decoding = decoding
        self._byte_of_letter = byte_of_letter
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    @property
    def is_even(self) -> bool:
        return not self._decoder.getstate()[0]

    def push(self, token: str) -> str:
        return self._decoder.decode(token_to_bytes(token, self._decoding, self._byte_of_letter))

    def flush(self) -> str:
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


class _SentencePieceStream:
    """Holds back a run of byte tokens until it ends: one wrong byte makes the decoder give up the whole run."""

    def __init__(self, strip: int) -> None:
        self._strip = strip
        self._run = bytearray()

    @property
    def is_even(self) -> bool:
        return not self._run and not self._strip

    def push(self, token: str) -> str:
        byte = fallback_byte(token.replace(METASPACE, " "))
        if byte is not None:
            self._run.append(byte)
            return ""
        return self._stripped(self._end_run() + token.replace(METASPACE, " "))

    def flush(self) -> str:
        return self._stripped(self._end_run())

    def _end_run(self) -> str:
        run, self._run = bytes(self._run), bytearray()
        try:
            return run.decode("utf-8")
        except UnicodeDecodeError:
            return REPLACEMENT * len(run)

    def _stripped(self, text: str) -> str:
        if not self._strip or not text:
            return text
        kept = text[: self._strip].lstrip(" ") + text[self._strip :]
        # Only spaces before the first other character count, and only so many of them.
        self._strip = self._strip - len(text) if not kept else 0
        return kept


class _MetaspaceStream:
    def __init__(self, drops_first: bool) -> None:
        self._drops = drops_first

    @property
    def is_even(self) -> bool:
        return not self._drops

    def push(self, token: str) -> str:
        drops, self._drops = self._drops, False
        return token.replace(METASPACE, "" if drops else " ")

    def flush(self) -> str:
        return ""


class _WordStream:
    def __init__(self) -> None:
        self._glue = ""

    @property
    def is_even(self) -> bool:
        return False  # a token's text begins with a space unless it is the first

    def push(self, token: str) -> str:
        text, self._glue = self._glue + token, " "
        return text

    def flush(self) -> str:
        return ""

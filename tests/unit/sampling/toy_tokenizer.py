"""Two small tokenizers: byte-level BPE as models have it, and one the grammar library cannot read by itself."""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

EOS = 0
# Merges make tokens that cross the borders of JSON's own tokens, which is where a mask goes wrong first.
MERGES = ['{ "', '" :', '" ,', '" }', 'Ġ "', "t r", "tr u", "tru e", "n u", "l l", "nu ll", "a b", "ab c", "1 2", "Ċ Ċ"]


@dataclass(frozen=True)
class ToyTokenizer:
    """What `GrammarBackend` asks of a tokenizer."""

    raw: Tokenizer
    vocabulary: list[bytes]
    eos_token_ids: tuple[int, ...] = (EOS,)

    def vocabulary_bytes(self) -> list[bytes]:
        return self.vocabulary

    def encode(self, text: str) -> list[int]:
        return self.raw.encode(text, add_special_tokens=False).ids


def byte_alphabet() -> dict[int, str]:
    """GPT-2's printable character for each byte."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(rest)}


def make_byte_level() -> ToyTokenizer:
    """256 bytes, some merges and an end-of-sequence token."""
    alphabet = byte_alphabet()
    merges = [tuple(merge.split(" ")) for merge in MERGES]
    pieces = ["</s>", *alphabet.values(), *("".join(merge) for merge in merges)]
    raw = Tokenizer(models.BPE({piece: i for i, piece in enumerate(pieces)}, merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken("</s>", special=True)])
    raw.encode_special_tokens = True  # a text that says "</s>" is a text
    to_byte = {char: byte for byte, char in alphabet.items()}
    vocabulary = [b"", *(bytes(to_byte[char] for char in piece) for piece in pieces[1:])]
    return ToyTokenizer(raw, vocabulary)


def make_character_level() -> ToyTokenizer:
    """One token a printable ASCII character, with no decoder that says how."""
    pieces = ["</s>", *map(chr, range(32, 127))]
    raw = Tokenizer(models.WordLevel({piece: i for i, piece in enumerate(pieces)}, unk_token="?"))
    raw.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    raw.add_special_tokens([AddedToken("</s>", special=True)])
    return ToyTokenizer(raw, [b"", *(piece.encode() for piece in pieces[1:])])

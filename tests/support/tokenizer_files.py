"""Tiny tokenizers of the kinds real models have, as `tokenizers` objects and as GGUF metadata. Trained in the test."""

from __future__ import annotations

import itertools
import json
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

CORPUS = (
    "The mill by the pond turns while the water runs, and it's 2024 again; don't stop at 12345.",
    "def fib(n):\n    return n if n < 2 else fib(n - 1) + fib(n - 2)  # slow\n\n\n",
    "Größe, naïve café, Ελληνικά, Привет мир, 日本語のテキスト, 한국어, مرحبا بالعالم, हिन्दी",
    "==== ---- ....  !!! ??? <b>bold</b> a_b-c/d\\e {x: [1, 2]} 🎉👩‍👩‍👧 ½ Ⅷ",
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
TEXTS = (
    "",
    " ",
    "Hello world",
    "  two spaces, then\ttab",
    "a\n\n\nb\r\n \n c ",
    "def f(x):\n    return x ** 2\n",
    "It's 2024, don't pay 1234567.89 or ½ or Ⅷ",
    "日本語のテキスト と 한국어",
    "🎉👩‍👩‍👧‍👦 e\u0301 ﬁ\u00a0\u200b",
    "<|im_start|>user\nhi<|im_end|>\n",
    "<s>[INST] hi [/INST]</s>x",
    "====  -----   ....",
    "\x00\x01\x7f\ufffd",
    "x" * 70 + " " * 40 + "y",
    "مرحبا بالعالم हिन्दी",
)


def train_byte_level(pre_tokenizer: pre_tokenizers.PreTokenizer | None = None, vocab_size: int = 420) -> Tokenizer:
    """A byte-level BPE tokenizer; words are cut as GPT-2 cuts them unless said otherwise."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    raw.train_from_iterator(CORPUS * 3, trainer)
    return raw


def byte_level_metadata(raw: Tokenizer, pre: str) -> dict[str, Any]:
    """What a GGUF converter writes for a byte-level tokenizer."""
    vocabulary, merges = vocabulary_and_merges(raw)
    tokens = sorted(vocabulary, key=vocabulary.__getitem__)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in SPECIAL else 1 for token in tokens],
        "tokenizer.ggml.merges": [" ".join(merge) for merge in merges],
        "tokenizer.ggml.bos_token_id": vocabulary["<|im_start|>"],
        "tokenizer.ggml.eos_token_id": vocabulary["<|im_end|>"],
    }


def vocabulary_and_merges(raw: Tokenizer) -> tuple[dict[str, int], list[list[str]]]:
    """The inside of a BPE model."""
    model = json.loads(raw.to_str())["model"]
    return model["vocab"], [merge if isinstance(merge, list) else merge.split(" ") for merge in model["merges"]]


def sentencepiece_pieces() -> list[tuple[str, float, int]]:
    """A small SentencePiece BPE vocabulary: (piece, score, GGUF kind). Later pieces were merged later."""
    control = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    bytes_ = [(f"<0x{byte:02X}>", 0.0, 6) for byte in range(256)]
    words = "he th in er an on the ▁t ▁a ▁th ▁the ing ▁the▁ ll llo ▁he ▁hello wo rl ld world ▁world == === ==== ab aba"
    merged = [*words.split(), "本語", "日本語"]
    letters = sorted(set("".join(CORPUS).replace(" ", "▁")) | set("▁abcdefghijklmnopqrstuvwxyz="))
    pieces = [piece for piece in dict.fromkeys(merged) if len(piece) > 1]
    ranked = [(piece, -float(rank), 1) for rank, piece in enumerate([*pieces, *letters])]
    return [*control, *bytes_, *ranked]


def sentencepiece_metadata(adds_space: bool = True) -> dict[str, Any]:
    """What a GGUF converter writes for that vocabulary."""
    pieces = sentencepiece_pieces()
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": [piece for piece, _, _ in pieces],
        "tokenizer.ggml.scores": [score for _, score, _ in pieces],
        "tokenizer.ggml.token_type": [kind for _, _, kind in pieces],
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": adds_space,
    }


def sentencepiece_ids(text: str, adds_space: bool = True) -> list[int]:
    """SentencePiece's algorithm, by brute force: merge the best-scored adjacent pair, leftmost first, until none is."""
    pieces = sentencepiece_pieces()
    ids = {piece: index for index, (piece, _, _) in enumerate(pieces)}
    scores = {piece: score for piece, score, kind in pieces if kind == 1}
    symbols = list((" " + text if adds_space else text).replace(" ", "▁")) if text else []
    while True:
        pairs = [(scores[a + b], -at) for at, (a, b) in enumerate(itertools.pairwise(symbols)) if a + b in scores]
        if not pairs:
            break
        at = -max(pairs)[1]
        symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]
    result = []
    for symbol in symbols:
        result += [ids[symbol]] if symbol in scores else [ids[f"<0x{byte:02X}>"] for byte in symbol.encode()]
    return result


def sentencepiece_tokenizer(adds_space: bool) -> Tokenizer:
    """A tokenizer whose decoder is Llama 2's (with the added space) or Gemma's (without), for decoding tests."""
    vocabulary = {piece: index for index, (piece, _, _) in enumerate(sentencepiece_pieces())}
    raw = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    raw.normalizer = normalizers.Replace(" ", "▁")
    strip = [decoders.Strip(" ", left=1)] if adds_space else []
    raw.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    raw.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in ("<unk>", "<s>", "</s>")])
    return raw


def metaspace_tokenizer(scheme: str) -> Tokenizer:
    """A tokenizer with a Metaspace decoder."""
    vocabulary = {piece: index for index, (piece, _, _) in enumerate(sentencepiece_pieces())}
    raw = Tokenizer(models.BPE(vocabulary, []))
    raw.decoder = decoders.Metaspace(prepend_scheme=scheme)
    raw.add_special_tokens([AddedToken("<s>", special=True)])
    return raw


def word_tokenizer() -> Tokenizer:
    """A tokenizer without a decoder."""
    raw = Tokenizer(models.WordLevel({"<unk>": 0, "the": 1, "mill": 2, "é": 3}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.add_special_tokens([AddedToken("<s>", special=True)])
    return raw

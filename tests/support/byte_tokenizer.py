"""A tokenizer without training: one token a byte, some words that only a model can say, and an end of sequence."""

from __future__ import annotations

import json
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers


def make_byte_tokenizer(vocab_size: int, eos: int, other_special: tuple[int, ...] = ()) -> Tokenizer:
    """Ids in order: the bytes where no special token stands, then words; `eos` is "<eos>"."""
    special = {eos: "<eos>"} | {token_id: f"<special{token_id}>" for token_id in other_special}
    letters = iter(sorted(pre_tokenizers.ByteLevel.alphabet()))
    vocab = {special.get(token_id) or next(letters, f"word{token_id}"): token_id for token_id in range(vocab_size)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True) for text in special.values()])
    return tokenizer


def write_tokenizer(directory: Path, tokenizer: Tokenizer, chat_template: str | None = None) -> None:
    """Puts the tokenizer's files beside a model's."""
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"eos_token": "<eos>"} | ({} if chat_template is None else {"chat_template": chat_template})
    (directory / "tokenizer_config.json").write_text(json.dumps(config))

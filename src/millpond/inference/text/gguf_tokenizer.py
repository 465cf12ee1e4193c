"""A tokenizer built from a GGUF file's metadata: vocabulary, merges or scores, token kinds, special ids.

Two kinds exist for the families Millpond runs: "gpt2" (byte-level BPE with merges) and "llama" (SentencePiece BPE with
scores, bytes for what is not in the vocabulary). No torch. Called by load.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors
from tokenizers import pre_tokenizers as splitters

from millpond.inference.text.decoding import METASPACE
from millpond.inference.text.pretokenizers import PreTokenizerSpec, find_pre_tokenizer, known_pre_tokenizers
from millpond.inference.weights.base import file_error, shortened
from millpond.inference.weights.gguf_file import GgufFile

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_KEY = "tokenizer.ggml"
_SPECIAL_ROLES = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
# Tokens that end a turn whatever the file calls its end: many files name only one of a model's two or three.
_END_TOKENS = frozenset(
    {"<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>", "<|eom_id|>", "<EOT>"}
)
_USE_ANOTHER = "Give a tokenizer.json with --model.tokenizer."


def build_tokenizer(file: GgufFile) -> Tokenizer:
    """Builds the tokenizer of a GGUF file.

    Raises:
        CheckpointError: The metadata is incomplete or contradicts itself, or the kind is not supported.
    """
    kind = file.text(f"{_KEY}.model")
    tokens = _tokens(file)
    kinds = _token_kinds(file, len(tokens))
    if kind == "gpt2":
        tokenizer, adds_bos = _byte_level(file, tokens)
    elif kind == "llama":
        tokenizer, adds_bos = _sentencepiece(file, tokens, kinds), True
    else:
        raise file_error(file.path, f"the tokenizer kind {shortened(kind)} is not supported.", fix=_USE_ANOTHER)
    _add_tokens(tokenizer, tokens, kinds)
    _add_ends(file, tokenizer, tokens, adds_bos)
    return tokenizer


def special_tokens(file: GgufFile) -> dict[str, str]:
    """The special tokens a chat template may name."""
    tokens = file.metadata.get(f"{_KEY}.tokens")
    ids = {name: file.token_id(f"{_KEY}.{role}_token_id") for name, role in _SPECIAL_ROLES.items()}
    if not isinstance(tokens, list):
        return {}
    return {name: tokens[token_id] for name, token_id in ids.items() if token_id is not None and token_id < len(tokens)}


def end_token_ids(file: GgufFile) -> list[int]:
    """The tokens that end a sequence: those the file names, and control tokens known to end a turn."""
    named = [file.token_id(f"{_KEY}.{role}_token_id") for role in ("eos", "eot", "eom")]
    tokens = _tokens(file)
    kinds = _token_kinds(file, len(tokens))
    known = [index for index, token in enumerate(tokens) if token in _END_TOKENS and kinds[index] == CONTROL]
    return [token_id for token_id in dict.fromkeys([*named, *known]) if token_id is not None]


def chat_templates(file: GgufFile) -> dict[str, str]:
    """The chat templates by name; the nameless one is "default"."""
    prefix = "tokenizer.chat_template"
    templates = {
        key[len(prefix) + 1 :]: value
        for key, value in file.metadata.items()
        if key.startswith(f"{prefix}.") and isinstance(value, str)
    }
    default = file.metadata.get(prefix)
    return templates | ({"default": default} if isinstance(default, str) else {})


def _tokens(file: GgufFile) -> list[str]:
    tokens = file.metadata.get(f"{_KEY}.tokens")
    if not isinstance(tokens, list) or not tokens or not isinstance(tokens[0], str):
        raise file_error(file.path, "its metadata has no vocabulary.", fix=_USE_ANOTHER)
    return tokens


def _token_kinds(file: GgufFile, count: int) -> Sequence[int]:
    kinds = file.metadata.get(f"{_KEY}.token_type")
    if kinds is None:
        return [NORMAL] * count
    if not isinstance(kinds, np.ndarray) or len(kinds) != count:
        raise file_error(file.path, f"it gives kinds for other than its {count} tokens.", fix=_USE_ANOTHER)
    listed: list[int] = kinds.tolist()
    return listed


def _vocabulary(file: GgufFile, tokens: list[str]) -> dict[str, int]:
    vocabulary = {token: index for index, token in enumerate(tokens)}
    if len(vocabulary) != len(tokens):
        index = next(index for index, token in enumerate(tokens) if vocabulary[token] != index)
        raise file_error(file.path, f"its vocabulary has {shortened(tokens[index])} twice.", fix=_USE_ANOTHER)
    return vocabulary


def _byte_level(file: GgufFile, tokens: list[str]) -> tuple[Tokenizer, bool]:
    name = file.text(f"{_KEY}.pre", "")
    spec: PreTokenizerSpec | None = find_pre_tokenizer(name)
    if spec is None:
        known = ", ".join(known_pre_tokenizers())
        raise file_error(
            file.path, f"the pre-tokenizer {shortened(name)} is not supported.", fix=f"{_USE_ANOTHER} Known: {known}."
        )
    lines = file.metadata.get(f"{_KEY}.merges")
    if not isinstance(lines, list):
        raise file_error(file.path, "its metadata has no merges.", fix=_USE_ANOTHER)
    merges = [_merge(file, line) for line in lines]
    tokenizer = Tokenizer(_bpe(file, _vocabulary(file, tokens), merges, ignore_merges=spec.ignores_merges))
    normalizer = spec.normalizer()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = spec.pre_tokenizer()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer, spec.adds_bos


def _merge(file: GgufFile, line: str) -> tuple[str, str]:
    left, space, right = line[1:].partition(" ")
    if not space:
        raise file_error(file.path, f"{shortened(line)} is not a merge of two tokens.", fix=_USE_ANOTHER)
    return line[0] + left, right


def _bpe(file: GgufFile, vocabulary: dict[str, int], merges: list[tuple[str, str]], **options: Any) -> models.BPE:
    try:
        return models.BPE(vocabulary, merges, **options)
    except Exception as error:
        raise file_error(file.path, f"its merges do not fit its vocabulary: {error}.", fix=_USE_ANOTHER) from error


def _sentencepiece(file: GgufFile, tokens: list[str], kinds: Sequence[int]) -> Tokenizer:
    """As the original Llama 2 and Gemma tokenizer.json files: ▁ for spaces, merges by score, bytes as a last resort."""
    scores = file.metadata.get(f"{_KEY}.scores")
    if not isinstance(scores, np.ndarray) or len(scores) != len(tokens):
        raise file_error(file.path, f"it gives no score for each of its {len(tokens)} tokens.", fix=_USE_ANOTHER)
    # Runs of spaces are stored as they are typed, while text is matched after its spaces have become ▁.
    spelled = [METASPACE * len(token) if _is_spaces(token) else token for token in tokens]
    vocabulary = _vocabulary(file, spelled)
    unknown = file.token_id(f"{_KEY}.unknown_token_id")
    unknown_token = spelled[unknown] if unknown is not None and unknown < len(spelled) else None
    merges = _merges_by_score(spelled, vocabulary, kinds, scores)
    bpe = _bpe(file, vocabulary, merges, unk_token=unknown_token, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(bpe)
    adds_space = file.flag(f"{_KEY}.add_space_prefix", True)
    prepend = [normalizers.Prepend(METASPACE)] if adds_space else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", METASPACE)])
    if not adds_space:  # Gemma: words end with their space, which keeps merges within a word
        tokenizer.pre_tokenizer = splitters.Split(" ", behavior="merged_with_previous")
    strip = [decoders.Strip(" ", left=1)] if adds_space else []
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(METASPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    return tokenizer


def _is_spaces(token: str) -> bool:
    return len(token) > 1 and not token.strip(" ")


def _merges_by_score(
    tokens: list[str], vocabulary: dict[str, int], kinds: Sequence[int], scores: np.ndarray
) -> list[tuple[str, str]]:
    """Every way to make a token from two, best token first; of one token the longer left part first.

    Runs of spaces come before all: SentencePiece takes them whole, and their scores are placeholders.
    """
    is_run = np.array([not token.strip(METASPACE) for token in tokens]) & (np.asarray(kinds) == USER_DEFINED)
    mergeable = np.asarray(kinds) == NORMAL
    ranked = np.lexsort((np.arange(len(tokens)), -scores.astype(np.float64), ~is_run))
    merges = []
    for index in ranked[(mergeable | is_run)[ranked]].tolist():
        token = tokens[index]
        for cut in range(len(token) - 1, 0, -1):
            left = token[:cut]
            if left in vocabulary:
                right = token[cut:]
                if right in vocabulary:
                    merges.append((left, right))
    return merges


def _add_tokens(tokenizer: Tokenizer, tokens: list[str], kinds: Sequence[int]) -> None:
    """Control tokens are special; user-defined ones are matched whole but belong to the text."""
    special, plain = [], []
    for token, kind in zip(tokens, kinds, strict=True):
        if kind in (CONTROL, UNKNOWN) and token:
            special.append(AddedToken(token, normalized=False, special=True))
        elif kind == USER_DEFINED and token and not _is_spaces(token):
            plain.append(AddedToken(token, normalized=False, special=False))
    tokenizer.add_special_tokens(special)
    tokenizer.add_tokens(plain)


def _add_ends(file: GgufFile, tokenizer: Tokenizer, tokens: list[str], adds_bos: bool) -> None:
    """What `encode(..., add_special_tokens=True)` puts around a text."""
    template, used = ["$A"], {}
    for role, default in (("bos", adds_bos), ("eos", False)):
        token_id = file.token_id(f"{_KEY}.{role}_token_id")
        if token_id is None:
            continue
        if token_id >= len(tokens):
            raise file_error(file.path, f"its {role} token {token_id} is not in its vocabulary.", fix=_USE_ANOTHER)
        if file.flag(f"{_KEY}.add_{role}_token", default):
            template.insert(0 if role == "bos" else len(template), tokens[token_id])
            used[tokens[token_id]] = token_id
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=list(used.items()))

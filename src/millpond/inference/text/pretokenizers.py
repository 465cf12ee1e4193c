"""How text is cut into words before byte-level BPE, by the name GGUF gives the way.

GGUF stores a name (`tokenizer.ggml.pre`) in place of the rules. The rules are facts of each model's tokenizer.json;
several names share one. Called by gguf_tokenizer.py.
"""

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, normalizers, pre_tokenizers

_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}" + _REST
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}" + _REST
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_BLOOM = r" ?[^(\s|[.,!?…。，、।۔،])]+"  # noqa: RUF001 - the punctuation BLOOM was trained with
_DIGIT = r"\p{N}"
# Files from before the names existed: llama.cpp's own guess, kept for them.
_UNNAMED = (r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")


@dataclass(frozen=True, slots=True)
class PreTokenizerSpec:
    """Rules of one name: each pattern cuts what the ones before it left; then bytes become letters."""

    patterns: tuple[str, ...]
    ignores_merges: bool = False  # a word that is a token is not built by merges
    adds_bos: bool = False  # unless the file says otherwise
    is_nfc: bool = False

    def pre_tokenizer(self) -> pre_tokenizers.PreTokenizer:
        """Builds it."""
        cuts = [pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in self.patterns]
        letters = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        return pre_tokenizers.Sequence([*cuts, letters])

    def normalizer(self) -> normalizers.Normalizer | None:
        """Builds it, where there is one."""
        return normalizers.NFC() if self.is_nfc else None


_SPECS = (
    (("gpt-2", "gpt2", "phi-2", "mpt", "olmo", "jais"), PreTokenizerSpec((_GPT2,))),
    (
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
        PreTokenizerSpec((_DIGIT, _GPT2)),
    ),
    (("llama-bpe", "llama3", "llama-v3", "falcon3"), PreTokenizerSpec((_LLAMA3,), ignores_merges=True, adds_bos=True)),
    (("dbrx", "smaug-bpe", "chatglm-bpe"), PreTokenizerSpec((_LLAMA3,))),
    (("qwen2", "deepseek-r1-qwen", "megrez"), PreTokenizerSpec((_QWEN2,), is_nfc=True)),
    (("stablelm2",), PreTokenizerSpec((_QWEN2,))),
    (("tekken",), PreTokenizerSpec((_TEKKEN,), ignores_merges=True, adds_bos=True)),
    (("bloom", "poro-chat", "gpt3-finnish"), PreTokenizerSpec((_BLOOM,))),
    (("viking",), PreTokenizerSpec((_BLOOM, _DIGIT))),
    (("default", ""), PreTokenizerSpec(_UNNAMED)),
)


def find_pre_tokenizer(name: str) -> PreTokenizerSpec | None:
    """Returns the rules for a name; None when it is not known."""
    return next((spec for names, spec in _SPECS if name in names), None)


def known_pre_tokenizers() -> list[str]:
    """The names there are rules for."""
    return sorted(name for names, _ in _SPECS for name in names if name)

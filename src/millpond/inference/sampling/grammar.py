"""Grammars: JSON, JSON schema, regular expressions, choices and Lark, compiled to masks over the vocabulary.

Owns the bridge to llguidance (why that library: docs/design/grammar.md). Does not import torch. The engine masks with a
`GrammarBackend`; the gateway checks with the same class inside `grammar_guard`'s process, so what is admitted compiles.
Errors a user can cause are `RequestError` with param "grammar".
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from millpond.api.request import GrammarSpec
from millpond.base.errors import RequestError
from millpond.inference.sampling.grammar_bounds import PARAM, GrammarLimits, check_bounds, read_choices

if TYPE_CHECKING:
    import llguidance
    import tokenizers

Int32Array = npt.NDArray[np.int32]

# Insignificant whitespace between JSON tokens has an end, or a small model may write newlines until its length limit.
_WHITESPACE = r"[ \t\n\r]{1,64}"
_CACHED_GRAMMARS = 64
# Copies of a compiled grammar share one lexer whose states only grow; a fresh one now and then stays within the limit.
_COPIES_PER_COMPILE = 256
_MASKS_IN_PARALLEL = 4  # fewer are done sooner by one thread


class GrammarTokenizer(Protocol):
    """What a grammar needs of a tokenizer; `inference.text.Tokenizer` is one."""

    @property
    def raw(self) -> tokenizers.Tokenizer:
        """The Hugging Face tokenizer."""

    @property
    def eos_token_ids(self) -> Iterable[int]:
        """Tokens that end a sequence."""

    def vocabulary_bytes(self) -> Sequence[bytes]:
        """The bytes each token stands for, by id."""


class Matcher:
    """One sequence's place in its grammar. Made by `GrammarBackend.make_matcher`."""

    __slots__ = ("native",)

    def __init__(self, native: llguidance.LLMatcher) -> None:
        self.native = native

    def accept(self, token_id: int) -> bool:
        """Moves on by one token. False, and `error` set, when the grammar does not allow it."""
        return self.native.is_stopped() or self.native.consume_token(token_id)

    @property
    def is_finished(self) -> bool:
        """Whether nothing but an end-of-sequence token can follow."""
        return self.native.is_stopped()

    @property
    def error(self) -> str:
        """Why no further mask can be made; empty while all is well."""
        return _first_line(self.native.get_error()) if self.native.is_error() else ""


class GrammarBackend:
    """Compiles grammars for one tokenizer and fills token masks. Safe to share between threads.

    Args:
        tokenizer: The model's tokenizer; read at the first grammar, not before.
        vocab_size: Width of the model's logits when it is more than the tokenizer has tokens.
        eos_token_ids: Tokens that end a sequence; None takes the tokenizer's.
        limits: Bounds on what a request may send.
        threads: Most threads that fill masks.
    """

    def __init__(
        self,
        tokenizer: GrammarTokenizer,
        *,
        vocab_size: int | None = None,
        eos_token_ids: Iterable[int] | None = None,
        limits: GrammarLimits | None = None,
        threads: int = 1,
    ) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_token_ids = sorted(set(tokenizer.eos_token_ids if eos_token_ids is None else eos_token_ids))
        self._limits = limits or GrammarLimits()
        self._threads = threads
        self._lock = threading.Lock()
        self._native_tokenizer: llguidance.LLTokenizer | None = None
        self._executor: llguidance.LLExecutor | None = None
        self._compiled: OrderedDict[GrammarSpec, tuple[llguidance.LLMatcher, int]] = OrderedDict()

    @property
    def mask_words(self) -> int:
        """int32 words in a row of a mask, one bit a token, lowest bit first."""
        return -(-self._load_tokenizer().vocab_size // 32)

    def load(self) -> None:
        """Reads the tokenizer now rather than at the first grammar: tenths of a second, seconds when it is big."""
        if self._eos_token_ids:
            self._load_tokenizer()

    def check(self, spec: GrammarSpec) -> None:
        """Raises `RequestError` unless the grammar is within bounds, compiles, and matches something.

        Takes milliseconds for sane grammars. A hostile one may never finish: `grammar_guard` is for those.
        """
        self.make_matcher(spec)

    def make_matcher(self, spec: GrammarSpec) -> Matcher:
        """A matcher at the start of the grammar. Recently used grammars are not compiled again."""
        with self._lock:
            native, copies_left = self._compiled.pop(spec, (None, 0))
            if native is not None and copies_left > 0:
                self._compiled[spec] = (native, copies_left - 1)
                return Matcher(native.deep_copy())
        native = self._compile(spec)
        with self._lock:
            self._compiled[spec] = (native, _COPIES_PER_COMPILE - 1)
            while len(self._compiled) > _CACHED_GRAMMARS:
                self._compiled.popitem(last=False)
            return Matcher(native.deep_copy())

    def fill_masks(self, matchers: Sequence[Matcher], mask: Int32Array) -> None:
        """Writes the allowed tokens of matcher i into mask[i].

        A matcher that fails sets its `error` and gets a mask of end-of-sequence tokens, as one that is finished does.

        Args:
            matchers: Each at most once.
            mask: [len(matchers) or more, mask_words] C-contiguous.
        """
        row_bytes = mask.shape[1] * mask.itemsize
        start = mask.ctypes.data
        if self._threads > 1 and len(matchers) >= _MASKS_IN_PARALLEL:
            pairs = [(matcher.native, index) for index, matcher in enumerate(matchers)]
            self._load_executor().unsafe_compute_mask_ptr(pairs, start, row_bytes, mask.shape[0])
            return
        for index, matcher in enumerate(matchers):
            matcher.native.unsafe_compute_mask_ptr(start + index * row_bytes, row_bytes)

    def _compile(self, spec: GrammarSpec) -> llguidance.LLMatcher:
        import llguidance

        check_bounds(spec, self._limits)
        if not self._eos_token_ids:
            raise RequestError(
                "The model has no end-of-sequence token, so a grammar could never end.",
                fix="Leave out the grammar.",
                param=PARAM,
            )
        tokenizer = self._load_tokenizer()
        bounds, is_lark = self._limits, spec.kind == "lark"
        limits = llguidance.LLParserLimits(
            initial_lexer_fuel=bounds.compile_fuel,
            step_lexer_fuel=bounds.mask_fuel,
            step_max_items=bounds.lark_mask_items if is_lark else bounds.mask_items,
            max_items_in_row=bounds.lark_row_items if is_lark else bounds.max_row_items,
            max_lexer_states=bounds.max_lexer_states,
            verbose_errors=False,
        )
        try:
            matcher = llguidance.LLMatcher(tokenizer, _to_native(spec, self._limits), log_level=0, limits=limits)
        except ValueError as error:
            raise _refusal(spec, str(error)) from error
        if not matcher.is_error():
            matcher.compute_bitmask()  # a grammar that matches nothing, or is too wide, shows at its first mask
        if matcher.is_error():
            raise _refusal(spec, matcher.get_error())
        return matcher

    def _load_tokenizer(self) -> llguidance.LLTokenizer:
        if self._native_tokenizer is None:
            with self._lock:
                if self._native_tokenizer is None:
                    self._native_tokenizer = self._make_native_tokenizer()
        return self._native_tokenizer

    def _make_native_tokenizer(self) -> llguidance.LLTokenizer:
        import llguidance

        raw = self._tokenizer.raw
        wanted = max(self._vocab_size or 0, raw.get_vocab_size(with_added_tokens=True))
        try:
            return llguidance.LLTokenizer(raw.to_str(), n_vocab=wanted, eos_token=self._eos_token_ids)
        except ValueError:  # not byte-level and not byte-fallback: spell the vocabulary out
            wrapper = llguidance.TokenizerWrapper(_Vocabulary(self._tokenizer, self._eos_token_ids))
            return llguidance.LLTokenizer(wrapper, eos_token=self._eos_token_ids)

    def _load_executor(self) -> llguidance.LLExecutor:
        import llguidance

        if self._executor is None:
            self._executor = llguidance.LLExecutor(self._threads)
        return self._executor


class _Vocabulary:
    """A tokenizer in the shape of llguidance's wrapper."""

    def __init__(self, tokenizer: GrammarTokenizer, eos_token_ids: list[int]) -> None:
        self._raw = tokenizer.raw
        self.tokens = list(tokenizer.vocabulary_bytes())
        self.eos_token_id = eos_token_ids[0]
        self.bos_token_id = None
        added = self._raw.get_added_tokens_decoder()
        self.special_token_ids = sorted({*eos_token_ids, *(i for i, token in added.items() if token.special)})

    def __call__(self, text: bytes) -> list[int]:
        return list(self._raw.encode(text.decode(errors="replace"), add_special_tokens=False).ids)


def _to_native(spec: GrammarSpec, limits: GrammarLimits) -> str:
    from llguidance import LLMatcher

    if spec.kind == "regex":
        return LLMatcher.grammar_from_regex(spec.source)
    if spec.kind == "choice":
        return LLMatcher.grammar_from_regex("|".join(re.escape(text) for text in read_choices(spec.source, limits)))
    if spec.kind == "lark":
        return LLMatcher.grammar_from_lark(spec.source)
    schema = '{"type": "object"}' if spec.kind == "json_object" else spec.source
    return LLMatcher.grammar_from_json_schema(schema, overrides={"whitespace_pattern": _WHITESPACE})


def _refusal(spec: GrammarSpec, reason: str) -> RequestError:
    line = "No text matches it" if reason.startswith("NoExtension") else _first_line(reason).rstrip(".")
    return RequestError(
        f"The {spec.kind} grammar cannot be used: {line}.",
        fix="See docs/design/grammar.md for what is supported.",
        param=PARAM,
    )


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0][:200]

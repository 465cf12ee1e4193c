"""Checks sampling parameters at the border, so that nothing in the step loop can be surprised by them.

Owns the engine's ranges: what a protocol allows beyond or below them is its adapter's business. Checks types too, since
Python callers build `SamplingParams` without msgspec's validation. Knows nothing of grammars but their size; compiling
them is `inference.sampling.grammar`. No torch, no I/O, some microseconds a call.
"""

from __future__ import annotations

import math
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from millpond.api.request import GrammarSpec, SamplingParams
from millpond.base.errors import RequestError

MAX_CHOICES = 128
MAX_LOGPROBS = 20
MAX_BEAM_WIDTH = 32
MAX_STOP_STRINGS = 64
MAX_STOP_CHARS = 1024
MAX_STOP_TOKEN_IDS = 1024
MAX_LOGIT_BIASES = 4096
MAX_BAD_WORDS = 1024
MAX_BAD_WORD_TOKENS = 128
MAX_GRAMMAR_CHARS = 128 * 1024
_INT32 = 2**31 - 1


@dataclass(frozen=True, slots=True)
class _Range:
    """A closed range of numbers; infinities stand for an open end."""

    low: float
    high: float
    is_whole: bool = False
    may_be_none: bool = False

    def describe(self) -> str:
        kind = "a whole number" if self.is_whole else "a number"
        if math.isinf(self.high):
            return f"{kind} of at least {self.low:g}"
        return f"{kind} from {_show(self.low)} to {_show(self.high)}"


_RANGES = {
    "n": _Range(1, MAX_CHOICES, is_whole=True),
    "temperature": _Range(0.0, math.inf),
    "top_k": _Range(-1, _INT32, is_whole=True),
    "top_p": _Range(0.0, 1.0),
    "min_p": _Range(0.0, 1.0),
    "typical_p": _Range(0.0, 1.0),
    "repetition_penalty": _Range(0.001, 1000.0),
    "presence_penalty": _Range(-2.0, 2.0),
    "frequency_penalty": _Range(-2.0, 2.0),
    "seed": _Range(-(2**63), 2**63 - 1, is_whole=True, may_be_none=True),
    "max_tokens": _Range(1, _INT32, is_whole=True, may_be_none=True),
    "min_tokens": _Range(0, _INT32, is_whole=True),
    "logprobs": _Range(0, MAX_LOGPROBS, is_whole=True, may_be_none=True),
    "prompt_logprobs": _Range(0, MAX_LOGPROBS, is_whole=True, may_be_none=True),
    "beam_width": _Range(1, MAX_BEAM_WIDTH, is_whole=True),
    "length_penalty": _Range(-100.0, 100.0),
}
_BIAS = _Range(-100.0, 100.0)
_SWITCHES = ("include_stop_str_in_output", "ignore_eos", "skip_special_tokens", "early_stopping")


def check_sampling(params: SamplingParams, vocab_size: int) -> None:
    """Raises `RequestError`, its `param` the field's name, unless every field is of its type and in its range."""
    for name, allowed in _RANGES.items():
        _check_number(name, getattr(params, name), allowed)
    for name in _SWITCHES:
        if not isinstance(getattr(params, name), bool):
            _refuse(name, f"{name} is {_show(getattr(params, name))}.", "Use true or false.")
    _check_logit_bias(params.logit_bias, vocab_size)
    _check_bad_words(params.bad_words_ids, vocab_size)
    _check_stop(params.stop)
    _check_stop_token_ids(params.stop_token_ids, vocab_size)
    _check_grammar(params.grammar)
    _check_together(params)


def _check_number(name: str, value: object, allowed: _Range) -> None:
    if value is None and allowed.may_be_none:
        return
    kinds = int if allowed.is_whole else (int, float)
    if not isinstance(value, kinds) or isinstance(value, bool) or not allowed.low <= value <= allowed.high:
        _refuse(name, f"{name} is {_show(value)}.", f"Use {allowed.describe()}.")
    if value == math.inf or (not allowed.is_whole and isinstance(value, int) and abs(value) > 10**300):
        _refuse(name, f"{name} is {_show(value)}, which is not finite.", f"Use {allowed.describe()}.")


def _check_logit_bias(bias: object, vocab_size: int) -> None:
    if bias is None:
        return
    if not isinstance(bias, dict):
        _refuse("logit_bias", f"logit_bias is {_show(bias)}.", "Use a map from token ids to numbers.")
    if len(bias) > MAX_LOGIT_BIASES:
        _refuse("logit_bias", f"logit_bias has {len(bias)} entries.", f"Use at most {MAX_LOGIT_BIASES}.")
    for token_id, value in bias.items():
        _check_token_id("logit_bias", token_id, vocab_size)
        _check_number("logit_bias", value, _BIAS)


def _check_bad_words(words: object, vocab_size: int) -> None:
    for word in _check_list("bad_words_ids", words, MAX_BAD_WORDS):
        if not _check_list("bad_words_ids", word, MAX_BAD_WORD_TOKENS):
            _refuse("bad_words_ids", "bad_words_ids holds a word without tokens.", "Leave it out.")
        for token_id in word:
            _check_token_id("bad_words_ids", token_id, vocab_size)


def _check_stop(stop: object) -> None:
    for text in _check_list("stop", stop, MAX_STOP_STRINGS):
        if not isinstance(text, str):
            _refuse("stop", f"stop holds {_show(text)}.", "Use strings; ids go into stop_token_ids.")
        if not 1 <= len(text) <= MAX_STOP_CHARS:
            _refuse("stop", f"A stop string is {len(text)} characters long.", f"Use 1 to {MAX_STOP_CHARS} characters.")


def _check_stop_token_ids(token_ids: object, vocab_size: int) -> None:
    for token_id in _check_list("stop_token_ids", token_ids, MAX_STOP_TOKEN_IDS):
        _check_token_id("stop_token_ids", token_id, vocab_size)


def _check_grammar(grammar: object) -> None:
    if grammar is None:
        return
    if not isinstance(grammar, GrammarSpec) or not isinstance(grammar.source, str):
        _refuse("grammar", f"grammar is {_show(grammar)}.", "Use a GrammarSpec.")
    if len(grammar.source) > MAX_GRAMMAR_CHARS:
        _refuse(
            "grammar", f"The grammar is {len(grammar.source)} characters long.", f"Use at most {MAX_GRAMMAR_CHARS}."
        )


def _check_together(params: SamplingParams) -> None:
    if params.max_tokens is not None and params.min_tokens > params.max_tokens:
        _refuse(
            "min_tokens",
            f"min_tokens is {params.min_tokens} and max_tokens is {params.max_tokens}.",
            "Use min_tokens of at most max_tokens.",
        )
    if params.beam_width > 1:
        if params.n > params.beam_width:
            _refuse("n", f"n is {params.n} and beam_width is {params.beam_width}.", "Use n of at most beam_width.")
        if params.grammar is not None:
            _refuse("grammar", "Beam search does not follow grammars.", "Use beam_width 1 or leave the grammar out.")


def _check_list(name: str, value: object, most: int) -> Sequence[Any]:
    if not isinstance(value, tuple | list):
        _refuse(name, f"{name} is {_show(value)}.", "Use a list.")
    if len(value) > most:
        _refuse(name, f"{name} has {len(value)} entries.", f"Use at most {most}.")
    return value


def _check_token_id(name: str, token_id: object, vocab_size: int) -> None:
    if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id < vocab_size:
        _refuse(name, f"{name} names the token {_show(token_id)}.", f"Use token ids from 0 to {vocab_size - 1}.")


def _refuse(param: str, message: str, fix: str) -> NoReturn:
    raise RequestError(message, fix=fix, param=param)


def _show(value: object) -> str:
    """A value in few words: a hostile one can be a number of a million digits, or a list of them."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return f"{value:g}"
    try:
        text = reprlib.repr(value)
    except ValueError:  # Python refuses to write integers of more than 4300 digits
        text = f"a huge {type(value).__name__}"
    return text if len(text) <= 60 else f"{text[:57]}..."

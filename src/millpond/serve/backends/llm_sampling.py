"""Sampling parameters as clients of an LLM servable send them: vLLM's names, values of any JSON type or all as text.

Owns reading and converting; ranges are checked at the engine's admission. Knows no tensors.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from millpond.api.request import GrammarSpec, SamplingParams
from millpond.base.suggest import did_you_mean
from millpond.inference.text import Tokenizer
from millpond.serve.servables.errors import ServableError

_WORDS = {"true": True, "false": False, "1": True, "0": False}


def read_sampling(values: Mapping[str, object], tokenizer: Tokenizer) -> SamplingParams:
    """Returns the engine's parameters.

    Args:
        values: By vLLM's names; None values count as not given.
        tokenizer: For bad words.

    Raises:
        ServableError: A name is not known, or a value is not of its type.
    """
    given = {name: value for name, value in values.items() if value is not None}
    fields: dict[str, Any] = {}
    for name, value in given.items():
        convert = _FIELDS.get(name)
        if convert is not None:
            fields[name] = _converted(name, value, convert)
        elif name not in _ELSEWHERE:
            near = did_you_mean(name, [*_FIELDS, *_ELSEWHERE])
            raise _invalid(f"The sampling parameter '{name}' is not known. {near}".strip())
    for name in ("detokenize", "spaces_between_special_tokens"):
        if name in given and not _converted(name, given[name], _boolean):
            raise _invalid(f"The sampling parameter {name} is always true here.")
    if given.get("lora_name"):
        raise _invalid("Adapters (lora_name) are not served.")
    if "bad_words" in given:
        fields["bad_words_ids"] = word_ids(_converted("bad_words", given["bad_words"], _texts), tokenizer)
    fields.update(_beams(given, fields))
    grammar = _grammar(given)
    return SamplingParams(**fields, grammar=grammar)


def word_ids(words: Iterable[str], tokenizer: Tokenizer) -> tuple[tuple[int, ...], ...]:
    """Returns the token sequences that say a word: at the start of a text, and after a space."""
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        bare = word.lstrip()
        for text in (bare, f" {bare}"):
            if bare and (ids := tuple(tokenizer.encode(text, add_special_tokens=False))):
                found[ids] = None
    return tuple(found)


def _beams(given: Mapping[str, object], fields: Mapping[str, Any]) -> dict[str, Any]:
    count = fields.get("n", 1)
    best_of = _converted("best_of", given["best_of"], _integer) if "best_of" in given else None
    if "use_beam_search" in given and _converted("use_beam_search", given["use_beam_search"], _boolean):
        return {"beam_width": best_of or count, "temperature": 0.0}
    if best_of not in (None, count):
        raise _invalid("best_of must equal n without use_beam_search.")
    return {}


def _grammar(given: Mapping[str, object]) -> GrammarSpec | None:
    asked = [given[name] for name in ("structured_outputs", "guided_decoding") if name in given]
    if not asked:
        return None
    parts = _converted("structured_outputs", asked[0], _mapping)
    kinds = {name: value for name, value in parts.items() if value not in (None, False) and name != "backend"}
    if len(kinds) != 1 or next(iter(kinds)) not in _GRAMMARS:
        raise _invalid(f"structured_outputs needs exactly one of {', '.join(_GRAMMARS)}.")
    ((kind, value),) = kinds.items()
    return _GRAMMARS[kind](value)


def _schema(value: object) -> GrammarSpec:
    source = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return GrammarSpec("json_schema", source)


_GRAMMARS: dict[str, Callable[[Any], GrammarSpec]] = {
    "json": _schema,
    "json_object": lambda _: GrammarSpec("json_object"),
    "regex": lambda value: GrammarSpec("regex", str(value)),
    "choice": lambda value: GrammarSpec("choice", json.dumps(_texts(value), ensure_ascii=False)),
    "grammar": lambda value: GrammarSpec("lark", str(value)),
}


def _converted(name: str, value: object, convert: Callable[[Any], Any]) -> Any:
    try:
        return convert(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        shown = repr(value)
        shown = shown if len(shown) <= 60 else f"{shown[:57]}..."
        raise _invalid(f"The sampling parameter {name} is {shown}, which is no {_KINDS[convert]}.") from None


def _integer(value: object) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError(value)
    return int(value)  # type: ignore[call-overload,no-any-return]  # what is no number raises, as it should


def _number(value: object) -> float:
    if isinstance(value, bool):
        raise ValueError(value)
    return float(value)  # type: ignore[arg-type]  # the same


def _boolean(value: object) -> bool:
    if isinstance(value, str):
        value = _WORDS.get(value.strip().lower())
    if value not in (True, False):
        raise ValueError(value)
    return bool(value)


def _texts(value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise ValueError(value)
    return tuple(value)


def _ids(value: object) -> tuple[int, ...]:
    read = json.loads(value) if isinstance(value, str) else value
    if not isinstance(read, list):
        raise ValueError(value)
    return tuple(_integer(each) for each in read)


def _mapping(value: object) -> dict[str, Any]:
    read = json.loads(value) if isinstance(value, str) else value
    if not isinstance(read, dict):
        raise ValueError(value)
    return read


def _biases(value: object) -> dict[int, float]:
    return {int(token_id): _number(bias) for token_id, bias in _mapping(value).items()}


_FIELDS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("n", "top_k", "seed", "max_tokens", "min_tokens", "logprobs", "prompt_logprobs"), _integer),
    **dict.fromkeys(
        (
            "temperature",
            "top_p",
            "min_p",
            "typical_p",
            "repetition_penalty",
            "presence_penalty",
            "frequency_penalty",
            "length_penalty",
        ),
        _number,
    ),
    **dict.fromkeys(("include_stop_str_in_output", "ignore_eos", "skip_special_tokens", "early_stopping"), _boolean),
    "stop": _texts,
    "stop_token_ids": _ids,
    "logit_bias": _biases,
}
_ELSEWHERE = (
    "best_of",
    "use_beam_search",
    "bad_words",
    "structured_outputs",
    "guided_decoding",
    "detokenize",
    "spaces_between_special_tokens",
    "lora_name",
)
_KINDS: dict[Callable[[Any], Any], str] = {
    _integer: "whole number",
    _number: "number",
    _boolean: "boolean",
    _texts: "text or list of texts",
    _ids: "list of token ids",
    _mapping: "JSON object",
    _biases: "map from token ids to numbers",
}


def _invalid(text: str) -> ServableError:
    return ServableError("invalid_argument", text)

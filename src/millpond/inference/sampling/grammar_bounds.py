"""Refuses grammars that are too big or too deep before a compiler sees them.

Owns the limits and the checks that need the grammar's text alone: size, nesting, references, the product of nested
repeats. Knows nothing of tokens or of the grammar library, whose own fuel limits stand behind these. Called by
`grammar` in the gateway and in the engine; equal text gets an equal answer on every machine.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NoReturn

from millpond.api.request import GrammarKind, GrammarSpec
from millpond.base.errors import RequestError
from millpond.inference.sampling.repeats import count_lark_repeats, count_repeats

PARAM = "grammar"


def _default_source_bytes() -> dict[GrammarKind, int]:
    kib = 1024
    return {
        "json_object": 0,
        "json_schema": 128 * kib,
        "regex": 8 * kib,
        "choice": 128 * kib,
        "lark": 32 * kib,
    }


@dataclass(frozen=True, slots=True)
class GrammarLimits:
    """How much a grammar may ask for. The last seven are fuel: steps of the grammar library, not seconds.

    Attributes:
        max_source_bytes: Longest source of each kind, UTF-8.
        max_pattern_bytes: Longest regular expression inside a JSON schema.
        max_depth: Deepest nesting of objects and arrays in a JSON schema.
        max_properties: Most members of `properties` in a whole schema; optional ones cost their square.
        max_pattern_properties: Most members of `patternProperties` in a whole schema; they cost their square.
        max_multiple: Largest product of the digits of all `multipleOf`; each costs a state a remainder.
        max_choices: Most alternatives of a choice.
        max_repeat: Largest product of nested repeat counts: (a{10}){20} is 200.
        compile_fuel: Work on the lexer when a grammar is compiled.
        mask_fuel: Work on the lexer for one token's mask.
        mask_items: Parser items for one token's mask.
        max_row_items: Alternatives the parser follows at one position.
        lark_mask_items: `mask_items` of Lark grammars, which can be ambiguous: their items cost their square.
        lark_row_items: `max_row_items` of Lark grammars.
        max_lexer_states: States a grammar's lexer may reach, about 1-2 kB each.
    """

    max_source_bytes: dict[GrammarKind, int] = field(default_factory=_default_source_bytes)
    max_pattern_bytes: int = 8 * 1024
    max_depth: int = 96
    max_properties: int = 1000
    max_pattern_properties: int = 32
    max_multiple: int = 10_000
    max_choices: int = 2048
    max_repeat: int = 10_000
    compile_fuel: int = 500_000
    mask_fuel: int = 50_000
    mask_items: int = 10_000
    max_row_items: int = 5_000
    lark_mask_items: int = 2_000
    lark_row_items: int = 500
    max_lexer_states: int = 100_000


def check_bounds(spec: GrammarSpec, limits: GrammarLimits) -> None:
    """Raises `RequestError` (param "grammar") when the text of a grammar is over a limit or malformed."""
    longest = limits.max_source_bytes.get(spec.kind)
    if longest is None:
        _refuse(f"The grammar kind {spec.kind!r} does not exist.", f"Use one of {', '.join(limits.max_source_bytes)}.")
    try:
        size = len(spec.source.encode())
    except UnicodeEncodeError:
        _refuse("The grammar holds a lone surrogate, which is not text.", "Send valid Unicode.")
    if size > longest and spec.kind != "json_object":
        _refuse(f"The {spec.kind} grammar is {size} bytes long; at most {longest} are taken.", "Make it smaller.")
    if spec.kind == "json_schema":
        _check_schema(spec.source, limits)
    elif spec.kind == "regex":
        _check_repeats(count_repeats(spec.source), limits)
    elif spec.kind == "lark":
        _check_lark(spec.source, limits)
    elif spec.kind == "choice":
        read_choices(spec.source, limits)


def read_choices(source: str, limits: GrammarLimits) -> list[str]:
    """The strings of a choice grammar's JSON list."""
    choices = _read_json(source, "list of choices", limits.max_depth)
    if not isinstance(choices, list) or not choices or not all(isinstance(choice, str) for choice in choices):
        _refuse("A choice grammar must be a JSON list of strings, at least one.", 'Send for example ["yes", "no"].')
    if len(choices) > limits.max_choices:
        _refuse(f"A choice grammar of {len(choices)} choices; at most {limits.max_choices} are taken.", "Send fewer.")
    try:
        "".join(choices).encode()
    except UnicodeEncodeError:
        _refuse("A choice holds a lone surrogate, which is not text.", "Send valid Unicode.")
    return choices


_MOST_DIGITS = 9
_STRING = re.compile(r'"(?:[^"\\]|\\.)*"', re.DOTALL)
_EMBEDDED_JSON = re.compile(r"%json\s*(?=\{)")
_BRACKET = re.compile(r"[\[\]{}]")


def _refuse(message: str, fix: str) -> NoReturn:
    raise RequestError(message, fix=fix, param=PARAM)


def _check_schema(source: str, limits: GrammarLimits) -> None:
    schema = _read_json(source, "JSON schema", limits.max_depth)
    if not isinstance(schema, dict | bool):
        _refuse("A JSON schema must be an object or a boolean.", 'Send for example {"type": "object"}.')
    counts = {"properties": 0, "patternProperties": 0}
    multiples = set()
    for key, value in _walk(schema):
        if key == "$ref" and isinstance(value, str) and not value.startswith("#"):
            _refuse(f"The schema refers to {value[:80]!r}.", "Only references inside the schema (#/...) are followed.")
        if key == "pattern" and isinstance(value, str):
            _check_pattern(value, limits)
        if key == "multipleOf" and isinstance(value, int | float) and not isinstance(value, bool):
            multiples.add(_significant_digits(value))
        if key in counts and isinstance(value, dict):
            counts[key] += len(value)
        if key == "patternProperties" and isinstance(value, dict):
            for pattern in value:
                _check_pattern(pattern, limits)
    for key, most in (("properties", limits.max_properties), ("patternProperties", limits.max_pattern_properties)):
        if counts[key] > most:
            _refuse(f"The schema has {counts[key]} {key}; at most {most} are taken.", "Send a smaller schema.")
    if math.prod(multiples) > limits.max_multiple:
        _refuse("The schema's multipleOf are too large.", f"Keep their product to {limits.max_multiple}.")


def _check_lark(source: str, limits: GrammarLimits) -> None:
    _check_repeats(count_lark_repeats(source), limits)
    for embedded in _EMBEDDED_JSON.finditer(source):
        try:
            end = json.JSONDecoder().raw_decode(source, embedded.end())[1]
        except (ValueError, RecursionError):
            _refuse("The JSON schema after %json is not valid JSON.", "Send valid JSON.")
        _check_schema(source[embedded.end() : end], limits)


def _significant_digits(value: int | float) -> int:
    """The number's digits as a whole number without the powers of ten: 0.25 is 25."""
    digits = str(value).partition("e")[0].replace(".", "").strip("-0")
    return int(digits[:_MOST_DIGITS] or "1")


def _walk(schema: object) -> Iterator[tuple[str, Any]]:
    waiting = [schema]
    while waiting:
        node = waiting.pop()
        if isinstance(node, dict):
            yield from node.items()
            waiting.extend(node.values())
        elif isinstance(node, list):
            waiting.extend(node)


def _check_pattern(pattern: str, limits: GrammarLimits) -> None:
    if len(pattern.encode(errors="replace")) > limits.max_pattern_bytes:
        _refuse(f"A pattern in the schema is longer than {limits.max_pattern_bytes} bytes.", "Make it shorter.")
    _check_repeats(count_repeats(pattern), limits)


def _check_repeats(repeats: int, limits: GrammarLimits) -> None:
    if repeats > limits.max_repeat:
        _refuse(
            f"The grammar repeats a part {repeats} times; at most {limits.max_repeat} are taken.",
            "Lower its counts, or use * and +.",
        )


def _read_json(source: str, what: str, max_depth: int) -> Any:
    depth = 0
    for bracket in _BRACKET.finditer(_STRING.sub("", source)):
        depth += 1 if bracket.group() in "[{" else -1
        if depth > max_depth:
            _refuse(f"The {what} is nested deeper than {max_depth} levels.", "Make it flatter, or use $ref.")
    try:
        return json.loads(source, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        _refuse(f"The {what} is not valid JSON: {str(error)[:120]}.", "Send valid JSON.")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")

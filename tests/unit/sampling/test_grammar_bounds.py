"""Limits on grammars that need their text alone."""

from __future__ import annotations

import json
import re

import pytest

from millpond.api.request import GrammarKind, GrammarSpec
from millpond.base.errors import RequestError
from millpond.inference.sampling.grammar_bounds import GrammarLimits, check_bounds, read_choices

LIMITS = GrammarLimits()


def nest(levels: int) -> str:
    return '{"items":' * levels + "{}" + "}" * levels


@pytest.mark.parametrize(
    ("kind", "source", "reason"),
    [
        ("json_schema", json.dumps({"enum": ["x" * 200_000]}), "bytes long"),
        ("json_schema", nest(97), "nested deeper"),
        ("json_schema", nest(20_000), "bytes long|nested deeper"),
        ("json_schema", "[" * 50_000, "nested deeper"),
        ("json_schema", "{", "not valid JSON"),
        ("json_schema", '{"minimum": NaN}', "not valid JSON"),
        ("json_schema", '{"minimum": %s}' % ("9" * 5000), "not valid JSON"),
        ("json_schema", "[]", "object or a boolean"),
        ("json_schema", '"type"', "object or a boolean"),
        ("json_schema", '{"$ref": "http://example.com/s.json"}', "refers to"),
        ("json_schema", '{"items": [{"$ref": "file:///etc/passwd"}]}', "refers to"),
        ("json_schema", '{"pattern": "(a{1000}){1000}"}', "repeats a part 1000000 times"),
        ("json_schema", '{"patternProperties": {"(a{1000}){1000}": {}}}', "repeats a part"),
        ("json_schema", json.dumps({"pattern": "a" * 9000}), "longer than"),
        ("json_schema", json.dumps({"properties": {str(i): {} for i in range(2000)}}), "2000 properties"),
        ("json_schema", json.dumps({"patternProperties": {f"^{i}_": {} for i in range(99)}}), "99 patternProperties"),
        ("json_schema", '{"multipleOf": 982451653}', "multipleOf"),
        ("json_schema", '{"anyOf": [{"multipleOf": 997}, {"multipleOf": 0.991}]}', "multipleOf"),
        ("regex", "((a{100}){100}){100}", "repeats a part 1000000 times"),
        ("regex", "a" * 9000, "bytes long"),
        ("regex", "\ud800", "lone surrogate"),
        ("choice", "[]", "list of strings"),
        ("choice", '["a", 1]', "list of strings"),
        ("choice", '"a"', "list of strings"),
        ("choice", '["\\ud800"]', "lone surrogate"),
        ("choice", json.dumps([str(i) for i in range(3000)]), "3000 choices"),
        ("lark", "start: " + "(" * 40_000, "bytes long"),
        ("lark", 'start: A\nA: B{1000}\nB: "a"{1000}', "repeats a part 1000000 times"),
        ("lark", 'start: %json {"multipleOf": 982451653}', "multipleOf"),
        ("lark", 'start: %json {"a": }', "not valid JSON"),
        ("gbnf", "root ::= x", "does not exist"),
    ],
)
def test_refuses_what_is_malformed_or_over_a_limit(kind: GrammarKind, source: str, reason: str) -> None:
    with pytest.raises(RequestError) as caught:
        check_bounds(GrammarSpec(kind, source), LIMITS)

    assert re.search(reason, caught.value.message)
    assert caught.value.fix
    assert caught.value.param == "grammar"
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        ("json_object", ""),
        ("json_schema", nest(40)),
        ("json_schema", "true"),
        ("json_schema", '{"$ref": "#/$defs/a", "$defs": {"a": {"pattern": "^[a-z]{1,500}$"}}}'),
        ("json_schema", json.dumps({"const": "[" * 500})),
        ("regex", r"\d{4}-\d{2}-\d{2}"),
        ("choice", '["yes", "no", ""]'),
        ("lark", 'start: "a" // %json'),
        ("lark", 'start: %json {"type": "object"} "x"'),
        ("json_schema", '{"multipleOf": 0.01, "items": {"multipleOf": 1000}}'),
    ],
)
def test_lets_ordinary_grammars_pass(kind: GrammarKind, source: str) -> None:
    check_bounds(GrammarSpec(kind, source), LIMITS)


def test_reads_the_strings_of_a_choice() -> None:
    assert read_choices('["é", "\\ud83d\\ude00", "a\\"b"]', LIMITS) == ["é", "😀", 'a"b']

"""The schema that holds required calls: judged by a JSON schema validator and by the grammar library itself."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import msgspec
import pytest

from millpond.api.request import GrammarSpec
from millpond.inference.sampling.grammar import GrammarBackend
from millpond.inference.text import TextModel
from millpond.serve.http.openai.chat_fields import Tool
from millpond.serve.http.openai.tools import ArgumentsReader, calls_schema

TREE = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "$id": "https://example.org/tree",
    "type": "object",
    "properties": {"root": {"$ref": "#/$defs/Node"}, "again": {"$ref": "#"}},
    "required": ["root"],
    "additionalProperties": False,
    "$defs": {"Node": {"type": "object", "properties": {"value": {"type": "integer"}}, "required": ["value"]}},
}


def tool(name: str, parameters: dict[str, Any] | None) -> Tool:
    return msgspec.convert({"type": "function", "function": {"name": name, "parameters": parameters}}, Tool)


TOOLS = (tool("plant", TREE), tool("no.thing-1", None), tool("loose", {"properties": {"a": {"type": "string"}}}))


@pytest.mark.parametrize(
    ("calls", "is_valid"),
    [
        ([{"name": "plant", "arguments": {"root": {"value": 1}}}], True),
        ([{"name": "plant", "arguments": {"root": {"value": 1}, "again": {"root": {"value": 2}}}}], True),
        ([{"name": "no.thing-1", "arguments": {}}, {"name": "loose", "arguments": {"a": "x"}}], True),
        ([], False),
        ([{"name": "plant", "arguments": {"root": {"value": "1"}}}], False),
        ([{"name": "plant", "arguments": {"again": {"root": 5}}}], False),
        ([{"name": "no.thing-1", "arguments": {"a": 1}}], False),
        ([{"name": "other", "arguments": {}}], False),
        ([{"name": "loose"}], False),
        ({"name": "loose", "arguments": {}}, False),
    ],
)
def test_the_schema_allows_calls_to_the_tools_alone(calls: Any, is_valid: bool) -> None:
    assert jsonschema_rs.validator_for(calls_schema(TOOLS, is_single=False)).is_valid(calls) is is_valid


def test_one_call_is_all_when_they_may_not_be_parallel() -> None:
    call = {"name": "no.thing-1", "arguments": {}}
    validator = jsonschema_rs.validator_for(calls_schema(TOOLS, is_single=True))
    assert validator.is_valid([call])
    assert not validator.is_valid([call, call])


def test_the_engines_grammar_takes_the_schema(text: TextModel) -> None:
    backend = GrammarBackend(text.tokenizer)
    matcher = backend.make_matcher(GrammarSpec("json_schema", json.dumps(calls_schema(TOOLS, is_single=False))))
    written = '[{"name": "plant", "arguments": {"root": {"value": 7}, "again": {"root": {"value": 8}}}}]'
    assert all(matcher.accept(token_id) for token_id in text.tokenizer.encode(written, False))
    assert matcher.is_finished


def test_a_call_to_nothing_is_held_back_by_the_grammar(text: TextModel) -> None:
    backend = GrammarBackend(text.tokenizer)
    matcher = backend.make_matcher(GrammarSpec("json_schema", json.dumps(calls_schema(TOOLS, is_single=False))))
    assert not all(matcher.accept(token_id) for token_id in text.tokenizer.encode('[{"name": "other"', False))


def test_arguments_of_a_named_function_are_one_call() -> None:
    reader = ArgumentsReader("plant")
    pieces = [*reader.push("  "), *reader.push(' {"a"'), *reader.push(": 1}"), *reader.flush()]
    assert [(piece.name, piece.arguments) for piece in pieces if not isinstance(piece, str)] == [
        ("plant", '{"a"'),
        (None, ": 1}"),
    ]

"""The schemas, documents and bombs that `grammar_choice` measures grammar libraries with.

Data alone. Members stand in the order of the schema, which both libraries impose. A case lists documents that must
pass and documents that must not; `jsonschema_rs` confirms both before anything is measured, so a case cannot be wrong
about its own schema.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Case:
    """A schema with documents, compact JSON text, that it takes and refuses."""

    name: str
    schema: dict[str, Any]
    good: list[str] = field(default_factory=list)
    bad: list[str] = field(default_factory=list)


def _object(members: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": members,
        "required": sorted(members) if required is None else required,
        "additionalProperties": False,
    }


def _dump(value: object) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)


_TOOLS = [
    _object({"name": {"const": f"tool_{i}"}, "arguments": _object({f"value_{i}": {"type": "string"}})})
    for i in range(20)
]
_TREE = {
    "$ref": "#/$defs/node",
    "$defs": {
        "node": _object({"name": {"type": "string"}, "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}})
    },
}
_WIDE = _object({f"field_{i}": {"type": "string" if i % 2 else "number"} for i in range(200)}, [])
_COUNTRIES = [f"country number {i}" for i in range(1000)]

# Measured for speed. The documents are walked token by token.
SPEED = [
    Case(
        "person",
        _object({"name": {"type": "string"}, "age": {"type": "integer"}, "email": {"type": "string"}}),
        ['{"name":"Ada Lovelace","age":41,"email":"ada@example.com"}'],
    ),
    Case(
        "tree",
        _TREE,
        [_dump({"name": "root", "children": [{"name": "leaf", "children": []}, {"name": "other", "children": []}]})],
    ),
    Case(
        "tools",
        {"anyOf": _TOOLS},
        ['{"name":"tool_13","arguments":{"value_13":"some text for the tool to work on"}}'],
    ),
    Case("enum of 1000", {"enum": _COUNTRIES}, ['"country number 731"']),
    Case("200 optional", _WIDE, ['{"field_4":1.5,"field_77":"seventy-seven","field_198":3}']),
    Case(
        "patterns",
        _object({"date": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}$"}, "id": {"pattern": "^[a-f0-9]{32}$"}}),
        ['{"date":"2024-05","id":"0123456789abcdef0123456789abcdef"}'],
    ),
    Case(
        "any object",
        {"type": "object"},
        [_dump({"title": "A longer text of some words, as models write it.", "tags": ["a", "b"], "n": [1, 2.5, None]})],
    ),
]

_POSITIVE = {"type": "integer", "minimum": 1}
# Measured for correctness: is the keyword enforced, refused at compile time, ignored, or does it refuse good documents?
TRICKY = [
    Case("minimum", _POSITIVE, ["1", "27"], ["0", "-3"]),
    Case("maximum, exclusive", {"type": "integer", "exclusiveMaximum": 10}, ["9", "-50"], ["10", "11"]),
    Case("number bounds", {"type": "number", "minimum": 0.5, "maximum": 2.25}, ["0.5", "2.2", "1"], ["0.4", "2.3"]),
    Case("multipleOf", {"type": "integer", "multipleOf": 7}, ["0", "14", "-21"], ["1", "15"]),
    Case(
        "minLength, maxLength",
        {"type": "string", "minLength": 2, "maxLength": 3},
        ['"ab"', '"é😀1"'],
        ['"a"', '"abcd"'],
    ),
    Case("pattern, unanchored", {"type": "string", "pattern": "b+"}, ['"b"', '"abba"'], ['"a"', '""']),
    Case("pattern with length", {"type": "string", "pattern": "^a*$", "maxLength": 2}, ['"aa"'], ['"aaa"', '"b"']),
    Case("format date", {"type": "string", "format": "date"}, ['"2024-02-28"'], ['"2024-2-28"', '"x"']),
    Case("format uuid", {"type": "string", "format": "uuid"}, ['"123e4567-e89b-12d3-a456-426614174000"'], ['"123"']),
    Case(
        "minItems, maxItems",
        {"type": "array", "items": _POSITIVE, "minItems": 1, "maxItems": 2},
        ["[1]"],
        ["[]", "[1,2,3]"],
    ),
    Case(
        "prefixItems",
        {"type": "array", "prefixItems": [{"type": "null"}], "items": False},
        ["[null]", "[]"],
        ["[1]", "[null,1]"],
    ),
    Case("uniqueItems", {"type": "array", "items": _POSITIVE, "uniqueItems": True}, ["[1,2]"], ["[1,1]"]),
    Case("contains", {"type": "array", "contains": {"const": 1}}, ["[1]", "[2,1]"], ["[2]"]),
    Case(
        "required, out of order",
        {"type": "object", "required": ["b", "a"], "properties": {"a": {}, "b": {}}},
        ['{"a":1,"b":2}'],
        ['{"a":1}'],
    ),
    Case("required, not in properties", {"type": "object", "required": ["z"]}, ['{"z":1}'], ["{}"]),
    Case(
        "additionalProperties schema",
        {"type": "object", "additionalProperties": {"type": "integer"}},
        ['{"k":1}'],
        ['{"k":"v"}'],
    ),
    Case(
        "patternProperties",
        {"type": "object", "patternProperties": {"^n": {"type": "integer"}}, "additionalProperties": False},
        ['{"n1":1}'],
        ['{"n1":"x"}', '{"m":1}'],
    ),
    Case("propertyNames", {"type": "object", "propertyNames": {"pattern": "^a"}}, ['{"ab":1}'], ['{"b":1}']),
    Case(
        "minProperties, maxProperties",
        {"type": "object", "minProperties": 1, "maxProperties": 1},
        ['{"a":1}'],
        ["{}", '{"a":1,"b":2}'],
    ),
    Case(
        "dependentRequired",
        {"type": "object", "properties": {"a": {}, "b": {}}, "dependentRequired": {"a": ["b"]}},
        ['{"a":1,"b":1}'],
        ['{"a":1}'],
    ),
    Case("allOf", {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]}, ["3", "5"], ["2", "6"]),
    Case(
        "allOf of objects",
        {
            "allOf": [
                {"type": "object", "required": ["a"], "properties": {"a": {"type": "null"}}},
                {"required": ["b"], "properties": {"b": {"type": "null"}}},
            ]
        },
        ['{"a":null,"b":null}'],
        ['{"a":null}', '{"a":1,"b":null}'],
    ),
    Case("oneOf, overlapping", {"oneOf": [{"type": "integer"}, {"type": "integer", "minimum": 5}]}, ["3"], ["6"]),
    Case("oneOf, disjoint", {"oneOf": [{"type": "integer"}, {"type": "string"}]}, ["3", '"x"'], ["null"]),
    Case("not", {"not": {"type": "string"}}, ["1", "null"], ['"x"']),
    Case("if then", {"if": {"type": "string"}, "then": {"maxLength": 1}}, ['"a"', "5"], ['"ab"']),
    Case("const with quotes", {"const": 'a"b\\c\n/é'}, [_dump('a"b\\c\n/é')], ['"ab"']),
    Case(
        "enum of mixed types",
        {"enum": [1, "1", None, [1, {"a": 2}]]},
        ["1", '"1"', "null", '[1,{"a":2}]'],
        ["2", "true"],
    ),
    Case(
        "sibling of $ref",
        {"$ref": "#/$defs/s", "maxLength": 2, "$defs": {"s": {"type": "string"}}},
        ['"ab"'],
        ['"abc"', "1"],
    ),
    Case("escaped $ref", {"$ref": "#/$defs/a~1b%25", "$defs": {"a/b%": {"type": "null"}}}, ["null"], ["1"]),
    Case(
        "keys that need escapes",
        _object({'a"b': {"type": "null"}, "é\n": {"type": "null"}}),
        ['{"a\\"b":null,"é\\n":null}'],
        ['{"a":null}'],
    ),
    Case("type list", {"type": ["string", "null"], "maxLength": 1}, ["null", '"a"'], ['"ab"', "1"]),
    Case("false property", {"type": "object", "properties": {"a": False}}, ["{}"], ['{"a":1}']),
]

# Compiled in a process of their own: how long, how much memory, and does it ever end?
BOMBS: dict[str, dict[str, Any]] = {
    "multipleOf x 40 in anyOf": {"anyOf": [{"type": "integer", "multipleOf": 900 + i} for i in range(40)]},
    "multipleOf 99991": {"type": "integer", "multipleOf": 99_991},
    "300 patternProperties": {"type": "object", "patternProperties": {f"^x{i}_": {} for i in range(300)}},
    "4000 optional properties": {"type": "object", "properties": {f"p{i}": {} for i in range(4000)}},
    "anyOf 9^12 in allOf": {
        "allOf": [{"anyOf": [{"properties": {f"a{i}{j}": {"type": "integer"}}} for j in range(9)]} for i in range(12)]
    },
    "$ref doubling 2^30": {
        "$defs": {
            **{f"d{i}": {"prefixItems": [{"$ref": f"#/$defs/d{i + 1}"}] * 2, "minItems": 2} for i in range(30)},
            "d30": {"type": "integer"},
        },
        "$ref": "#/$defs/d0",
    },
    "$ref to itself": {"$ref": "#"},
    "pattern (a{1000}){1000}": {"type": "string", "pattern": "^(a{1000}){1000}$"},
    "pattern (a|b|c)? x 10000": {"type": "string", "pattern": "^" + "(a|b|c)?" * 10_000 + "$"},
    "minItems 1e6 in minItems 1e6": {
        "type": "array",
        "minItems": 10**6,
        "items": {"type": "array", "minItems": 10**6, "items": {"type": "null"}},
    },
    "maxLength 1e9": {"type": "string", "maxLength": 10**9},
    "enum of 50000": {"enum": [f"value number {i}" for i in range(50_000)]},
}

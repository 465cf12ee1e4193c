"""Hostile requests written by hand: what fuzzers do not think of. Each is a client's mistake, so each is a 4xx."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from typing import Any

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
HI = [{"role": "user", "content": "hi"}]
BOMBS: list[Any] = [
    {"type": "cow"},
    {"$ref": "#/nowhere"},
    {"$ref": "https://example.org/x"},
    {"$ref": "file:///etc/passwd"},
    {"not": {}},
    {"enum": []},
    {"type": "integer", "minimum": 5, "maximum": 1},
    {"type": "string", "pattern": "("},
    {"type": "string", "pattern": "(((a{0,99}){0,99}){0,99}){0,99}"},
    {"type": "string", "pattern": "a" * 20_000},
    {"type": "object", "properties": {f"p{k}": {"type": "string"} for k in range(9000)}},
    {"enum": ["x" * 40] * 9000},
]


def nested(depth: int, inner: Any = True) -> Any:
    """An object in an object, so many times."""
    for _ in range(depth):
        inner = {"properties": {"a": inner}}
    return inner


def raw_bodies() -> Iterator[bytes]:
    """Bodies that are no JSON object of ours at all."""
    yield from (
        b"",
        b" ",
        b"null",
        b"true",
        b"0",
        b'""',
        b"[]",
        b"{}",
        b"[{}]",
        b"\x00",
        b"\xff\xfe",
        b"{" * 5000,
        b"[" * 99_999,
    )
    yield from (
        b"{'prompt': 'a'}",
        b'{"prompt"}',
        b'{"prompt":}',
        b'{"prompt":"a"',
        b'{"prompt":"a"}}',
        b'{"prompt":"\x01"}',
    )
    for value in (
        b"NaN",
        b"Infinity",
        b"-Infinity",
        b"1e999",
        b"-1e999",
        b"0x10",
        b"01",
        b"+1",
        b"1.",
        b".5",
        b"9" * 5000,
    ):
        yield b'{"prompt":"a","messages":[{"role":"user","content":"a"}],"temperature":' + value + b"}"
    for text in (
        b'"\\ud800"',
        b'"\\udfff\\ud800"',
        b'"\xc3\x28"',
        b'"\xed\xa0\x80"',
        b'"\xf5\x80\x80\x80"',
        b'"\\x41"',
        b'"\\u12"',
    ):
        yield b'{"prompt":' + text + b',"messages":[{"role":"user","content":' + text + b"}]}"
    yield b'{"prompt":"a","prompt":"b","messages":[],"messages":[]}'
    yield b'{"prompt":"a","messages":[{"role":"user","content":"a","content":"b"}]}'
    yield b'{"prompt":"a","messages":[{"role":"user","content":"a"}],"x":' + b'{"a":' * 9999 + b"1" + b"}" * 9999 + b"}"


def wrong_fields() -> Iterator[dict[str, Any]]:
    """Fields of both endpoints with values nobody may send."""
    huge = 10**30
    for name, values in {
        "n": [0, -1, 129, huge, 1.5, "2", [1], {}, True, 100],
        "max_tokens": [-1, huge, 1.5, "9", [], 2**31, 10**6],
        "temperature": [-1, 2.1, huge, "hot", [], False],
        "top_p": [0, -0.1, 1.1, "x", {}],
        "top_k": [-2, huge, 0.5, "all"],
        "min_p": [-0.1, 1.1, "x"],
        "repetition_penalty": [0, -1, 11, "x"],
        "presence_penalty": [-2.1, 2.1, "x"],
        "frequency_penalty": [-2.1, 2.1, huge],
        "seed": [huge, -huge, 0.1, "x"],
        "stop": [5, [5], {}, [""], ["x"] * 65, "x" * 2000, [["a"]]],
        "stop_token_ids": [[-1], [10**9], ["1"], 5, [huge], [0] * 2000],
        "logit_bias": [{"x": 1}, {"-1": 1}, {"999999": 1}, {"1": 101}, {"1": "x"}, [1], {"1.0": 1}, {"1" * 400: 1}],
        "min_tokens": [-1, 10**10, "x"],
        "prompt_logprobs": [-1, 21, "x", True],
        "logprobs": [-1, 21, "x", 1.5],
        "priority": [huge, "high", 0.5],
        "cache_salt": ["", 5, "x" * 300],
        "request_id": ["", "a b", "x" * 200, "\n", 5],
        "stream": [1, "yes", [], {}],
        "stream_options": [1, [], {"include_usage": "x"}],
        "model": [5, [], "gpt-4", "", "../../etc/passwd", "x" * 10_000, "\u202e"],
        "response_format": [
            5,
            "json",
            {},
            {"type": "xml"},
            {"type": "json_schema"},
            {"type": "json_schema", "json_schema": 5},
        ],
        "structured_outputs": [{}, 5, {"json": "{"}, {"regex": "(", "choice": ["a"]}, {"choice": []}, {"grammar": "!"}],
        "guided_regex": ["(", "[", "*", "(?P<", "a" * 20_000, "((((a{99}){99}){99}){99})"],
        "guided_choice": [[], "x", [5], ["x" * 200_000]],
        "guided_grammar": ["", "start: start", "x" * 100_000, "start: /(/"],
        "guided_json": ["{", 5, "[" * 500],
        "suffix": ["x"],
        "chat_template": ["{{ 1 }}"],
    }.items():
        for value in values:
            yield {name: value}
    for bomb in [*BOMBS, nested(60), nested(30, {"type": "cow"})]:
        yield {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": bomb}}}


def wrong_chats() -> Iterator[dict[str, Any]]:
    """Messages nobody may send."""
    parts = [
        [{"type": "image_url"}],
        [{"type": "text"}],
        [{}],
        [5],
        ["x"],
        [{"type": 5}],
        [{"type": "text", "text": 5}],
    ]
    for messages in (
        [],
        {},
        "hi",
        [5],
        [[]],
        [{}],
        [{"role": "user"}],
        [{"role": "user", "content": 5}],
        [{"role": "user", "content": None}],
        [{"role": "", "content": "a"}],
        [{"role": "wizard", "content": "a"}],
        [{"role": ["user"], "content": "a"}],
        [{"role": "assistant", "tool_calls": 5}],
        [{"role": "assistant", "tool_calls": [{"function": {}}]}],
        *([{"role": "user", "content": part}] for part in parts),
    ):
        yield {"messages": messages}


def wrong_tools() -> Iterator[dict[str, Any]]:
    """Tools, and other fields of chat alone, nobody may send."""
    function = {"name": "f", "parameters": {"type": "object", "properties": {}}}
    tool = {"type": "function", "function": function}
    for extra in (
        {"tools": 5},
        {"tools": [5]},
        {"tools": [{"type": "function"}]},
        {"tools": [{"type": "search", "function": function}]},
        {"tools": [{"type": "function", "function": {"name": ""}}]},
        {"tools": [{"type": "function", "function": {"name": "a b"}}]},
        {"tools": [{"type": "function", "function": {"name": "x" * 65}}]},
        {"tools": [{"type": "function", "function": {"name": "f", "parameters": 5}}]},
        {"tools": [tool, tool]},
        {"tools": [tool] * 129},
        {"tools": [tool], "tool_choice": "f"},
        {"tools": [tool], "tool_choice": {"type": "function"}},
        {"tools": [tool], "tool_choice": {"type": "function", "function": {"name": "g"}}},
        {"tools": [], "tool_choice": "required"},
        {"tool_choice": "required"},
        {"tool_choice": {"type": "function", "function": {"name": "f"}}},
        {"top_logprobs": 1},
        {"logprobs": True, "top_logprobs": 21},
        {"chat_template_kwargs": 5},
        {"chat_template_kwargs": {"messages": []}},
        {"continue_final_message": True},
        {"functions": [function]},
        {"max_completion_tokens": 0},
    ):
        yield {"messages": HI, **extra}
    for bomb in BOMBS[:6]:
        parameters = {"type": "object", "properties": {"a": bomb}, "required": ["a"]}
        made = {"type": "function", "function": {"name": "f", "parameters": parameters}}
        yield {"messages": HI, "tools": [made], "tool_choice": "required"}


def wrong_prompts() -> Iterator[dict[str, Any]]:
    """Prompts nobody may send."""
    for prompt in (
        None,
        5,
        {},
        [],
        [[]],
        [None],
        [1.5],
        [-1],
        [10**9],
        [10**30],
        ["a", 1],
        [[1], "a"],
        [[1], []],
        ["a"] * 300,
        [[["a"]]],
    ):
        yield {"prompt": prompt}
    yield {"prompt": "mill " * 9000}
    yield {"prompt": [1] * 5000}
    yield {"prompt": "a", "logprobs": 6}
    yield {"prompt": "a", "best_of": 0}
    yield {"prompt": "a", "best_of": 1, "n": 2}
    yield {"prompt": "a", "echo": "yes"}


def hostile_requests() -> list[tuple[str, bytes]]:
    """Every (path, body)."""
    requests = [(path, body) for path, body in itertools.product((CHAT, COMPLETIONS), raw_bodies())]
    # `logprobs` is a number for one endpoint and a truth value for the other; both refuse these.
    requests += [(COMPLETIONS, _encode({"prompt": "a", **fields})) for fields in wrong_fields()]
    requests += [(CHAT, _encode({"messages": HI, **fields})) for fields in wrong_fields()]
    requests += [(CHAT, _encode(fields)) for fields in (*wrong_chats(), *wrong_tools())]
    requests += [(COMPLETIONS, _encode(fields)) for fields in wrong_prompts()]
    return requests


def _encode(body: Any) -> bytes:
    return json.dumps(body).encode()

"""Readers of tool calls: what they find, and that it does not depend on how the text was cut."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.serve.http.openai.tool_forms import TOOL_FORMS, form_of

NAMES = frozenset({"get_weather", "add"})
Calls = list[tuple[str, str]]


def read(form: str, parts: list[str]) -> tuple[str, Calls]:
    """The content and the calls (name, arguments) of an answer that comes in parts."""
    reader = TOOL_FORMS[form](NAMES)
    pieces = [piece for part in parts for piece in reader.push(part)] + reader.flush()
    content = "".join(piece for piece in pieces if isinstance(piece, str))
    calls: Calls = []
    for piece in pieces:
        if isinstance(piece, str):
            continue
        if piece.name is not None:
            assert piece.call == len(calls)
            calls.append((piece.name, ""))
        name, arguments = calls[piece.call]
        calls[piece.call] = (name, arguments + piece.arguments)
    return content, calls


WEATHER = ("get_weather", '{"city": "Bern"}')
CASES: dict[str, list[tuple[str, str, Calls]]] = {
    "hermes": [
        ("", "", []),
        ("Just text, with a < and a <tool.", "Just text, with a < and a <tool.", []),
        ('<tool_call>\n{"name": "get_weather", "arguments": {"city": "Bern"}}\n</tool_call>', "", [WEATHER]),
        (
            'I look. <tool_call>{"arguments": {"city": "Bern"}, "name": "get_weather"}</tool_call>\n'
            '<tool_call>{"name": "add", "arguments": {"a": [1, {"b": "}\\"]"}]}}</tool_call>\n',
            "I look.",
            [WEATHER, ("add", '{"a": [1, {"b": "}\\"]"}]}')],
        ),
        ('<tool_call>{"name": "add"}</tool_call>', "", [("add", "{}")]),
        ('<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("add", '{"a": 1}')]),
        ('<tool_call>{"name": "add", "arguments": {"a": 1', "", [("add", '{"a": 1')]),
        ("<tool_call>not json</tool_call>", "<tool_call>not json</tool_call>", []),
        ('<tool_call>{"a": 1}</tool_call>', '<tool_call>{"a": 1}</tool_call>', []),
        ('<tool_call>{"name": 5, "arguments": {}}', '<tool_call>{"name": 5, "arguments": {}}', []),
        ('<tool_call>{"name": "add", "arg', '<tool_call>{"name": "add", "arg', []),
    ],
    "llama": [
        ("", "", []),
        ('{"name": "get_weather", "parameters": {"city": "Bern"}}', "", [WEATHER]),
        (
            '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Bern"}}; {"name": "add", "parameters": {}}',
            "",
            [WEATHER, ("add", "{}")],
        ),
        ('{"name": "Bern", "parameters": {}}', '{"name": "Bern", "parameters": {}}', []),
        ('{"answer": 42}', '{"answer": 42}', []),
        ("A {brace} in text", "A {brace} in text", []),
        ("<|python", "<|python", []),
    ],
    "array": [
        ("", "", []),
        ('[{"name": "get_weather", "arguments": {"city": "Bern"}}]', "", [WEATHER]),
        (
            '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "Bern"}},\n {"name": "add", "arguments": {}}]',
            "",
            [WEATHER, ("add", "{}")],
        ),
        ('[{"name": "add", "arguments": {"a"', "", [("add", '{"a"')]),
        ('[{"name": "other", "arguments": {}}]', '[{"name": "other", "arguments": {}}]', []),
        ("[1, 2]", "[1, 2]", []),
        ("[TOOL", "[TOOL", []),
    ],
}
ALL = [(form, *case) for form, cases in CASES.items() for case in cases]


@pytest.mark.parametrize(("form", "text", "content", "calls"), ALL)
def test_an_answer_is_split_into_text_and_calls(form: str, text: str, content: str, calls: Calls) -> None:
    assert read(form, [text]) == (content, calls)


@pytest.mark.parametrize(("form", "text", "content", "calls"), ALL)
def test_it_is_the_same_character_by_character(form: str, text: str, content: str, calls: Calls) -> None:
    assert read(form, list(text)) == (content, calls)


FRAGMENTS = [
    *("<tool_call>", "</tool_call>", "<|python_tag|>", "[TOOL_CALLS]", '{"name": "add"', ', "arguments": '),
    *'{}[]"\\;, \nx1:é',
]


@given(
    st.sampled_from(sorted(CASES)),
    st.lists(st.sampled_from(FRAGMENTS), max_size=14),
    st.sets(st.integers(0, 60)),
)
def test_how_the_text_is_cut_changes_nothing(form: str, tokens: list[str], cuts: set[int]) -> None:
    text = "".join(tokens)
    places = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    parts = [text[start:stop] for start, stop in itertools.pairwise(places)]
    assert read(form, parts) == read(form, [text])


@given(st.sampled_from(sorted(CASES)), st.text(alphabet='{}[]":,;\\ \n<>/tool_calab1é', max_size=40))
def test_without_calls_no_visible_text_is_lost(form: str, text: str) -> None:
    content, calls = read(form, [text])
    if not calls:
        assert content == text


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(max_size=6), json_values, max_size=4), st.sampled_from(sorted(CASES)), st.booleans())
def test_any_arguments_come_through_as_they_were_written(
    arguments: dict[str, object], form: str, is_indented: bool
) -> None:
    written = json.dumps(arguments, indent=2 if is_indented else None, ensure_ascii=is_indented)
    key = "parameters" if form == "llama" else "arguments"
    call = f'{{"name": "add", "{key}": {written}}}'
    text = {"hermes": f"<tool_call>{call}</tool_call>", "llama": call, "array": f"[{call}]"}[form]
    assert read(form, [text]) == ("", [("add", written)])


@pytest.mark.parametrize(
    ("template", "form"),
    [
        ("{{ '<tool_call>' }}", "hermes"),
        ("{{ '[TOOL_CALLS]' }}", "array"),
        ('{{ \'{"name": x, "parameters": y}\' }}', "llama"),
        ("<|python_tag|>", "llama"),
        ("{{ messages }}", "hermes"),
        ("", "hermes"),
    ],
)
def test_the_form_is_seen_in_the_template(template: str, form: str) -> None:
    assert form_of(template) == form

"""What is wrong with a text that is no JSON, held to what a real server said and to Python's own parser."""

from __future__ import annotations

import json
import random

import pytest

from millpond.serve.http.kserve.json_faults import find_fault


@pytest.mark.parametrize(
    ("text", "words", "at"),
    [  # as Triton 2.51 answered them
        ("", "The document is empty.", 0),
        (" ", "The document is empty.", 1),
        ("{", "Missing a name for object member.", 1),
        ('{"a":tru}', "Invalid value.", 8),
        ('{"a":"open', "Missing a closing quotation mark in string.", 10),
        ('{"a":"\\u12"}', "Incorrect hex digit after \\u escape in string.", 6),
        ('{"a":"\\x"}', "Invalid escape character in string.", 6),
        ('{"a":"\x01"}', "Invalid escape character in string.", 6),
        ('{"a":[1 2]}', "Missing a comma or ']' after an array element.", 8),
        ('{"a":[1,2', "Missing a comma or ']' after an array element.", 9),
        ('{"a":1 "b":2}', "Missing a comma or '}' after an object member.", 7),
        ('{"a" 1}', "Missing a colon after a name of object member.", 5),
        ('{"a":1,}', "Missing a name for object member.", 7),
        ('{"a":1.}', "Miss fraction part in number.", 7),
        ('{"a":1e}', "Miss exponent in number.", 7),
        ('{"a":1e999}', "Number too big to be stored in double.", 5),
        ("{} x", "The document root must not be followed by other values.", 3),
    ],
)
def test_a_fault_has_the_words_and_the_place_of_the_original(text: str, words: str, at: int) -> None:
    assert find_fault(text) == (words, at)


def test_it_accepts_exactly_what_a_parser_of_json_accepts() -> None:
    rng = random.Random(5)
    whole = json.dumps({"a": [1, -2.5e3, None, True, {"b": [], "c": {}, "d": "x\\\n\"é"}, "", [[0]]], "e": False})
    num_right = 0
    for _ in range(4000):
        text = list(whole)
        for _ in range(rng.randrange(3)):
            at = rng.randrange(len(text))
            text[at : at + rng.randrange(2)] = rng.choice(["", ",", "]", "{", '"', "1", " ", "\\", ":", "e"])
        made = "".join(text)
        try:
            json.loads(made)
            is_right = True
        except ValueError:
            is_right = False
        num_right += is_right
        assert (find_fault(made) is None) == is_right, made
    assert 400 < num_right < 3600


def test_deep_nesting_needs_no_stack() -> None:
    assert find_fault("[" * 30_000 + "]" * 30_000) is None

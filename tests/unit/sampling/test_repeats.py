"""Counting how often patterns repeat their parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.inference.sampling.repeats import count_lark_repeats, count_repeats


@pytest.mark.parametrize(
    ("pattern", "repeats"),
    [
        ("abc", 1),
        ("a{3}", 3),
        ("a{3}b{4}", 4),
        ("(a{3}b){4}", 12),
        ("((a{10}){20}){30}", 6000),
        ("a{2}{3}", 6),
        ("(a{5})+", 5),
        ("a{7,}", 7),
        ("a{,7}", 7),
        ("a{2,9}?", 9),
        (r"\{9\}", 1),
        (r"\p{Lu}{4}\x{1F600}{5}", 5),
        ("[{9}]{2}", 2),
        ("[]a{9}]{2}", 2),
        ("[^]{9}[:alpha:]]{2}", 2),
        ("(a{0}){0}", 1),
        ("a{99999999999999999999}", 999_999_999),
    ],
)
def test_counts_nested_repeats(pattern: str, repeats: int) -> None:
    assert count_repeats(pattern) == repeats


@given(st.text(alphabet="ab(){}[]\\,01^pux|*+?", max_size=40))
def test_counting_repeats_ends_for_any_text(pattern: str) -> None:
    assert count_repeats(pattern) >= 1


@pytest.mark.parametrize(
    ("source", "repeats"),
    [
        ('start: "a"', 1),
        ("start: A\nA: /a{30}/", 30),
        ("start: /a{30}{2}/", 60),
        ('start: A\nA: B{40}\nB: "x"{50}', 2000),
        ('start: A\nA: (B | C){4}\nB: "x" ~ 5\nC: "y"~2..6', 24),
        ("start: A\nA: [B{7}]{3}\nB.2: /z{2}/i", 42),
        ("start: A\nA: B{10}\n | C{20}\nB: /b{3}/\nC: /c/", 30),
        ('start: A\nA: "{99}" /[{9}]/ // {77}\n', 1),
        ("start: a{50}\na: b{50}\nb: B{2}\nB: /x/", 1),  # the parser unrolls rules as it goes
        ("start: A\nA: A{10}", 10),
        ("start: A0\n" + "\n".join(f"A{i}: A{i + 1} A{i + 1}" for i in range(900)), 1),
    ],
)
def test_counts_repeats_of_lark_terminals_through_their_references(source: str, repeats: int) -> None:
    assert count_lark_repeats(source) == repeats


@given(st.text(alphabet='startAB01:\n "/(){}[]~.|\\#', max_size=60))
def test_counting_lark_repeats_ends_for_any_text(source: str) -> None:
    assert count_lark_repeats(source) >= 1

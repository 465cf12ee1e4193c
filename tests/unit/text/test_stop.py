"""Stop strings in pieces of text, against looking for them in the whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.inference.text import StopChecker

LETTERS = st.text("ab\n", max_size=6)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=5), max_size=3).map(tuple)


def brute_force(text: str, stop: tuple[str, ...], include: bool) -> tuple[str, str | None]:
    """The match that ends first; of those that end together the longest."""
    found = [(text.find(string) + len(string), -len(string), string) for string in stop if string in text]
    if not found:
        return text, None
    end, _, string = min(found)
    return text[:end] if include else text[: end - len(string)], string


def feed(checker: StopChecker, pieces: list[str]) -> tuple[str, str | None]:
    text = ""
    for piece in pieces:
        emit, matched = checker.push(piece)
        text += emit
        if matched is not None:
            return text, matched
    return text + checker.flush(), None


@given(pieces=st.lists(LETTERS, max_size=10), stop=STOPS, include=st.booleans())
def test_pieces_give_what_the_whole_text_gives(pieces: list[str], stop: tuple[str, ...], include: bool) -> None:
    assert feed(StopChecker(stop, include), pieces) == brute_force("".join(pieces), stop, include)


@given(text=st.text("ab", max_size=40), stop=STOPS)
def test_nothing_of_a_stop_string_is_shown_before_it_is_decided(text: str, stop: tuple[str, ...]) -> None:
    shown, _ = brute_force(text, stop, include=False)
    checker, sent = StopChecker(stop, include=False), ""
    for letter in text:
        emit, matched = checker.push(letter)
        sent += emit
        assert shown.startswith(sent)
        if matched is not None:
            break


def test_text_that_cannot_become_a_stop_string_is_not_held_back() -> None:
    assert StopChecker(("\nUser:",), False).push("Hello.") == ("Hello.", None)


def test_a_beginning_of_a_stop_string_is_held_back_until_it_is_none() -> None:
    checker = StopChecker(("END",), False)
    assert checker.push("the E") == ("the ", None)
    assert checker.push("N") == ("", None)
    assert checker.push("Q") == ("ENQ", None)


def test_the_longer_of_two_that_end_together_is_reported() -> None:
    assert StopChecker(("b", "ab"), False).push("xab") == ("x", "ab")


def test_text_after_the_match_is_not_shown() -> None:
    assert StopChecker(("stop",), True).push("a stop b") == ("a stop", "stop")


def test_no_stop_strings_hold_nothing_back() -> None:
    assert StopChecker((), False).push("anything") == ("anything", None)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(ValueError, match="empty stop string"):
        StopChecker(("",), False)

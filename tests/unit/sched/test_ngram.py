"""Guesses from a sequence's own text, against a search that looks at everything each time."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.inference.sched import ngram
from millpond.inference.sched.ngram import MATCH_TOKENS, HitRates, NgramPredictor

texts = st.lists(st.integers(0, 3), min_size=1, max_size=60)


def last_occurrence(token_ids: list[int]) -> int | None:
    """Where the continuation of the last tokens' previous occurrence begins, by trying every place."""
    tail = token_ids[-MATCH_TOKENS:]
    for place in range(len(token_ids) - 1, MATCH_TOKENS - 1, -1):
        if len(tail) == MATCH_TOKENS and token_ids[place - MATCH_TOKENS : place] == tail:
            return place
    return None


def continuation(token_ids: list[int], place: int, count: int) -> list[int]:
    """What follows `place`, the guesses themselves included."""
    text = list(token_ids)
    for index in range(count):
        text.append(text[place + index])
    return text[len(token_ids) :]


@given(texts, st.integers(1, 12))
def test_a_fresh_predictor_guesses_what_followed_the_last_time(text: list[int], count: int) -> None:
    place = last_occurrence(text)
    predictor = NgramPredictor(text, HitRates())
    assert predictor.propose(count) == ([] if place is None else continuation(text, place, count))


@given(texts, texts, st.lists(st.integers(1, 5), max_size=20))
def test_reading_in_any_pieces_gives_the_same_guesses(prompt: list[int], output: list[int], pieces: list[int]) -> None:
    at_once, in_pieces = [*prompt, *output], list(prompt)
    one = NgramPredictor(list(prompt), HitRates())
    one._token_ids.extend(output)
    one.advance()
    other = NgramPredictor(in_pieces, HitRates())
    while len(in_pieces) < len(at_once):
        step = pieces.pop() if pieces else 3
        in_pieces += at_once[len(in_pieces) : len(in_pieces) + step]
        other.advance()
    assert one.propose(8) == other.propose(8)
    assert one.confidence == other.confidence


@given(texts, texts)
def test_a_guess_always_follows_an_equal_match(prompt: list[int], output: list[int]) -> None:
    known = list(prompt)
    predictor = NgramPredictor(known, HitRates())
    for token_id in output:
        known.append(token_id)
        predictor.advance()
        if predictor.propose(1):
            place = predictor._place
            assert known[place - MATCH_TOKENS : place] == known[-MATCH_TOKENS:]
            assert place < len(known)
        else:
            assert last_occurrence(known) is None


def test_a_match_is_followed_while_it_is_right() -> None:
    known = [1, 2, 3, 10, 11, 12, 13, 9, 9, 1, 2, 3]
    predictor = NgramPredictor(known, HitRates())
    assert predictor.propose(3) == [10, 11, 12]
    known += [10, 11]
    predictor.advance()
    assert predictor.propose(2) == [12, 13]


def test_a_repetition_goes_on_past_the_end_of_the_text() -> None:
    assert NgramPredictor([4, 5] * 4, HitRates()).propose(7) == [4, 5, 4, 5, 4, 5, 4]


def test_confidence_follows_what_came_true() -> None:
    everyone = HitRates()
    known = [5] * 8
    right = NgramPredictor(known, everyone)
    first = right.confidence
    for _ in range(20):
        known.append(5)
        right.advance()
    assert first == 0.0
    assert right.confidence > 0.9
    wrong_text = [1, 2, 3, 4, 1, 2, 3]
    wrong = NgramPredictor(wrong_text, everyone)
    for token_id in range(100, 120):
        wrong_text += [token_id, 1, 2, 3]
        wrong.advance()
    assert wrong.confidence < 0.2


def test_guesses_are_scored_though_nobody_asked_for_them() -> None:
    everyone, known = HitRates(), [1, 2, 3, 4, 1, 2, 3]
    predictor = NgramPredictor(known, everyone)
    known.append(4)
    predictor.advance()
    assert everyone.rate(0) == 1.0


def test_what_is_old_counts_less() -> None:
    rates = HitRates()
    for is_hit in [False] * 500 + [True] * 100:
        rates.add(2, is_hit)
    assert rates.rate(2) > 0.75


def test_of_a_very_long_prompt_only_the_end_is_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ngram, "INDEXED_PROMPT_TOKENS", 10)
    early = [1, 2, 3, *range(10, 30), 1, 2, 3]
    assert NgramPredictor(early, HitRates()).propose(1) == []
    late = [*range(10, 30), 1, 2, 3, 7, 1, 2, 3]
    assert NgramPredictor(late, HitRates()).propose(1) == [7]

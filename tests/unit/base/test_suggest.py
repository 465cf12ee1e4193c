from __future__ import annotations

from millpond.base.suggest import closest, did_you_mean


def test_the_nearest_word_is_found_whatever_its_case() -> None:
    assert closest("BFLOAT", ["float32", "bfloat16", "int8"]) == "bfloat16"


def test_a_word_like_no_other_has_no_nearest() -> None:
    assert closest("zebra", ["float32", "int8"]) is None


def test_few_known_words_are_listed_when_none_is_near() -> None:
    assert did_you_mean("zebra", ["b", "a"]) == "Known are a, b."


def test_many_known_words_are_not_listed() -> None:
    assert did_you_mean("zebra", [f"name-{n}" for n in range(40)]) == ""

"""How sure a difference between two ways is: intervals hold the true one, and say nothing where there is none."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from bench.serving.protocol_rounds import compared, off_mean, turned


def rounds(num_rounds: int, seed: int, shares: dict[str, float]) -> dict[str, list[float]]:
    """Numbers of ways that differ by such factors, on a machine whose speed wanders."""
    random = np.random.default_rng(seed)
    speed = random.normal(1.0, 0.2, num_rounds).clip(0.5, 2.0)
    return {
        name: (400.0 * share * speed * random.normal(1.0, 0.05, num_rounds)).tolist() for name, share in shares.items()
    }


def test_intervals_hold_the_true_difference_as_often_as_they_say() -> None:
    held = 0
    for seed in range(100):
        (difference,) = compared(rounds(60, seed, {"one": 1.0, "other": 0.97}), is_share=True)
        held += difference.low <= 100 * np.log(1 / 0.97) <= difference.high
    assert 87 <= held <= 100


def test_a_difference_is_sure_where_it_is_larger_than_the_noise() -> None:
    (surely,) = compared(rounds(200, 1, {"one": 1.0, "other": 0.9}), is_share=True)
    assert 8.0 < surely.at_least < surely.at_most < 13.0
    (none,) = compared(rounds(200, 1, {"one": 1.0, "other": 1.0}), is_share=True)
    assert none.at_least == 0.0
    assert none.at_most < 3.0


def test_a_stall_of_the_machine_does_not_count() -> None:
    numbers = {"one": [10.0] * 50, "other": [10.5] * 50}
    numbers["one"][7] = 500.0
    (difference,) = compared(numbers, is_share=False)
    assert difference.middle == pytest.approx(-0.5)
    assert off_mean(numbers, "one", is_share=False).middle == pytest.approx(-0.25)


def test_every_way_is_first_in_turn() -> None:
    assert [turned("abc", number)[0] for number in range(4)] == ["a", "b", "c", "a"]
    assert sorted(turned("abc", 2)) == ["a", "b", "c"]


@pytest.mark.parametrize("count", [2, 3, 5, 7])
def test_each_way_follows_each_of_the_others_as_often(count: int) -> None:
    ways = list(range(count))
    pairs = Counter(pair for number in range(count * (count - 1)) for pair in pairwise(turned(ways, number)))
    assert set(pairs) == {(one, other) for one in ways for other in ways if one != other}
    assert len(set(pairs.values())) == 1


def test_of_six_ways_each_follows_two_of_the_others() -> None:
    assert all(sorted(turned("abcdef", number)) == list("abcdef") for number in range(12))
    pairs = {pair for number in range(12) for pair in pairwise(turned("abcdef", number))}
    assert len(pairs) == 12

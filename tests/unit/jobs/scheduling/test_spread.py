"""Slots over domains, with the vectors that Kueue publishes for its topology-aware scheduling."""

from __future__ import annotations

from operator import le

import pytest

from millpond.jobs.scheduling.spread import anywhere, balanced, best_fit, even_spread, least_free


@pytest.mark.parametrize(
    ("capacities", "ask", "slice_size", "answer"),
    [
        ([3, 3, 2, 1], 7, 1, [3, 3, 0, 1]),
        ([6, 5, 4, 3, 2], 12, 2, [6, 0, 4, 0, 2]),
        ([1, 1], 3, 1, None),
    ],
)
def test_best_fit_takes_the_largest_and_ends_with_the_tightest(
    capacities: list[int], ask: int, slice_size: int, answer: list[int] | None
) -> None:
    assert best_fit(capacities, ask, slice_size) == answer


@pytest.mark.parametrize(
    ("capacities", "ask", "slice_size", "answer"),
    [([3, 3, 2, 1], 7, 1, [3, 1, 2, 1]), ([6, 5, 4, 3, 2], 10, 2, [0, 2, 4, 2, 2])],
)
def test_least_free_uses_up_the_crumbs(capacities: list[int], ask: int, slice_size: int, answer: list[int]) -> None:
    assert least_free(capacities, ask, slice_size) == answer


@pytest.mark.parametrize(
    ("capacities", "ask", "slice_size", "answer"),
    [
        ([[20, 10], [15, 15]], 22, 1, [[0, 0], [11, 11]]),
        ([[20, 10], [15, 15]], 20, 1, [[20, 0], [0, 0]]),
        ([[15, 13, 10]], 23, 1, [[12, 11, 0]]),
        ([[10, 5], [5, 5, 5]], 15, 1, [[0, 0], [5, 5, 5]]),
        ([[15], [15], [15, 15]], 25, 5, [[0], [0], [15, 10]]),
    ],
)
def test_balanced_fills_the_least_loaded_leaf_as_far_as_it_can(
    capacities: list[list[int]], ask: int, slice_size: int, answer: list[list[int]]
) -> None:
    assert balanced(capacities, ask, slice_size) == answer


def test_even_spread_takes_equal_shares_of_the_fewest_domains() -> None:
    assert even_spread([8, 8, 8], 10) == [5, 5, 0]
    assert even_spread([8, 2, 8], 18) == [8, 2, 8]
    assert even_spread([1], 2) is None


def test_anywhere_keeps_to_the_capacities_and_to_its_dice() -> None:
    rooms = [3, 0, 1, 8]
    seen = {tuple(anywhere(rooms, 6, str(seed)) or ()) for seed in range(40)}
    assert all(sum(taken) == 6 and all(map(le, taken, rooms)) for taken in seen)
    assert len(seen) > 3
    assert anywhere(rooms, 6, "one") == anywhere(rooms, 6, "one")
    assert anywhere(rooms, 13, "one") is None

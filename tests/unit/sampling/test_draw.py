"""Truncation and the draw, against full sorts in float64 and against transformers' warpers."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
    TypicalLogitsWarper,
)

from millpond.inference.sampling.draw import (
    Scratch,
    choose_token,
    find_kept,
    find_nucleus,
    find_top,
    find_typical,
    make_truncation,
    pick,
)
from tests.unit.sampling.reference import by_likelihood, shortlist, softmax

Float32Array = npt.NDArray[np.float32]

# Few distinct values, so that ties are the rule; and -inf, as masks leave it.
TIED_ROWS = hnp.arrays(
    np.float32,
    st.integers(1, 400),
    elements=st.sampled_from([-np.inf, -3.0, -1.0, 0.0, 0.5, 2.0, 2.5]),
).filter(lambda row: row.max() > -np.inf)
TEMPERATURES = st.floats(0.05, 5.0)


def make_row(size: int, seed: int, scale: float = 3.0) -> Float32Array:
    return (np.random.default_rng(seed).standard_normal(size) * scale).astype(np.float32)


def kept_ids(row: Float32Array, temperature: float, top_k: int, top_p: float, min_p: float) -> list[int]:
    kept = make_truncation(temperature, top_k, top_p, min_p)
    return find_kept(row, row.max(), kept, Scratch(row.size))[0].tolist()


@given(TIED_ROWS, st.integers(1, 450))
def test_find_top_gives_the_largest_values_and_all_their_ties(row: Float32Array, count: int) -> None:
    finite = row[row > -np.inf]
    least = np.sort(finite)[::-1][min(count, finite.size) - 1]

    ids, values = find_top(row, count)

    assert ids.tolist() == np.flatnonzero(row >= least).tolist()
    assert values.tolist() == row[ids].tolist()


@pytest.mark.parametrize("size", [640, 1000, 4097, 50_257])
@pytest.mark.parametrize("count", [1, 5, 40, 700])
def test_find_top_agrees_with_torch_topk_on_long_rows(size: int, count: int) -> None:
    row = make_row(size, seed=size + count)

    ids, _ = find_top(row, count)

    assert ids.tolist() == sorted(torch.from_numpy(row).topk(min(count, size)).indices.tolist())


@given(hnp.arrays(np.float64, st.integers(1, 60), elements=st.sampled_from([0.5, 1.0, 2.0, 4.0])), st.floats(0, 1))
def test_nucleus_is_the_shortest_run_of_likeliest_tokens_with_the_mass(
    weights: npt.NDArray[np.float64], part: float
) -> None:
    mass = part * weights.sum()

    keep = find_nucleus(weights, mass)

    order = by_likelihood(weights)
    kept = order[: int(keep.sum())]
    assert sorted(kept) == np.flatnonzero(keep).tolist()
    assert weights[kept].sum() >= mass or len(kept) == weights.size
    assert len(kept) == 1 or weights[kept[:-1]].sum() < mass


@settings(max_examples=300)
@given(
    TIED_ROWS,
    TEMPERATURES,
    st.integers(-1, 450),
    st.one_of(st.just(1.0), st.floats(0, 1)),
    st.one_of(st.just(0.0), st.floats(0, 1)),
)
def test_kept_tokens_are_those_of_a_full_sort(
    row: Float32Array, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    order = shortlist(row, temperature, top_k, min_p)
    probabilities = softmax(row, temperature)
    mass = probabilities[order].cumsum() / probabilities[order].sum()

    kept = kept_ids(row, temperature, top_k, top_p, min_p)

    assert kept == sorted(order[: len(kept)])
    if top_p < 1.0:
        assert mass[len(kept) - 1] >= top_p - 1e-6
        assert len(kept) == 1 or mass[len(kept) - 2] < top_p + 1e-6
    else:
        assert [token for token in order if probabilities[token] > 1e-37] == [
            token for token in order if token in set(kept) and probabilities[token] > 1e-37
        ]


@pytest.mark.parametrize("size", [50, 3000, 49_152])
@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p", "min_p"),
    [
        (1.0, 0, 1.0, 0.0),
        (0.7, 0, 0.9, 0.0),
        (2.5, 0, 0.95, 0.0),
        (0.3, 0, 0.5, 0.0),
        (1.0, 1, 1.0, 0.0),
        (1.0, 20, 1.0, 0.0),
        (1.3, 64, 0.95, 0.0),
        (0.9, 1500, 0.8, 0.0),
        (1.0, 0, 1.0, 0.05),
        (1.5, 0, 0.9, 0.01),
        (1.2, 40, 0.9, 0.02),
        (1.0, 10**6, 0.999, 0.0),
    ],
)
def test_kept_tokens_and_their_weights_are_those_of_transformers(
    size: int, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if min_p > 0:
        warpers.append(MinPLogitsWarper(min_p))
    if top_k > 0:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    row = make_row(size, seed=size)

    ids, weights = find_kept(row, row.max(), make_truncation(temperature, top_k, top_p, min_p), Scratch(size))

    scores = warpers(torch.zeros(1, 1, dtype=torch.long), torch.from_numpy(row).double()[None])[0]
    expected = torch.softmax(scores, dim=0).numpy()
    assert ids.tolist() == np.flatnonzero(expected).tolist()
    np.testing.assert_allclose(weights / weights.sum(), expected[ids], rtol=2e-6)


@pytest.mark.parametrize("size", [5, 300, 5000])
@pytest.mark.parametrize("typical_p", [0.05, 0.5, 0.95])
@pytest.mark.parametrize(("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.7, 50, 1.0), (1.5, 0, 0.9)])
def test_typical_tokens_are_those_of_transformers(
    size: int, typical_p: float, temperature: float, top_k: int, top_p: float
) -> None:
    warpers = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    if top_k > 0:
        warpers.append(TopKLogitsWarper(top_k))
    if top_p < 1:
        warpers.append(TopPLogitsWarper(top_p))
    warpers.append(TypicalLogitsWarper(typical_p))
    row = make_row(size, seed=size + 1)

    kept = make_truncation(temperature, top_k, top_p, 0.0, typical_p)
    ids, weights = find_kept(row, row.max(), kept, Scratch(size))

    scores = warpers(torch.zeros(1, 1, dtype=torch.long), torch.from_numpy(row).double()[None])[0]
    expected = torch.softmax(scores, dim=0).numpy()
    assert ids.tolist() == np.flatnonzero(expected).tolist()
    np.testing.assert_allclose(weights / weights.sum(), expected[ids], rtol=2e-6)


@given(TIED_ROWS, st.floats(0.01, 0.99))
def test_typical_tokens_are_some_and_can_be_drawn(row: Float32Array, typical_p: float) -> None:
    weights = np.exp(row - row.max())

    keep = find_typical(weights, typical_p)

    assert keep.any()
    assert (weights[keep] > 0).all()


@pytest.mark.parametrize("size", [1, 7, 1024, 1025, 5000])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_the_draw_inverts_the_cumulative_distribution(size: int, top_p: float) -> None:
    row = make_row(size, seed=3, scale=1.0)
    row[:: size // 2 + 1] = -np.inf if size > 1 else 0.0
    kept, scratch = make_truncation(0.8, 0, top_p, 0.0), Scratch(size)
    ids, weights = find_kept(row, row.max(), kept, scratch)
    edges = np.concatenate([[0.0], weights.cumsum() / weights.sum()])

    for uniform in np.random.default_rng(5).random(200).tolist():
        token = choose_token(row, row.max(), kept, uniform, scratch)
        place = ids.tolist().index(token)
        assert edges[place] - 1e-6 <= uniform <= edges[place + 1] + 1e-6


@given(
    hnp.arrays(np.float64, st.integers(1, 30), elements=st.sampled_from([0.0, 1e-300, 1e-9, 0.3, 1.0, 1e30])),
    st.one_of(st.floats(0, 1, exclude_max=True), st.just(math.nextafter(1.0, 0.0)), st.just(0.0)),
)
def test_pick_never_gives_a_weightless_index(weights: npt.NDArray[np.float64], uniform: float) -> None:
    weights[weights.size // 2] = 1.0

    assert weights[pick(weights, uniform)] > 0


@pytest.mark.parametrize("uniform", [0.0, 0.5, math.nextafter(1.0, 0.0)])
@pytest.mark.parametrize("temperature", [2e-5, 1.0, 1e300])
def test_no_temperature_gives_a_masked_token(temperature: float, uniform: float) -> None:
    row = np.full(3000, -np.inf, dtype=np.float32)
    row[[5, 1700]] = [80.0, 75.0]

    with np.errstate(all="ignore"):
        token = choose_token(row, row.max(), make_truncation(temperature, 0, 1.0, 0.0), uniform, Scratch(row.size))

    assert token in (5, 1700)


def test_the_row_is_left_as_it_was() -> None:
    row = make_row(5000, seed=1)
    before = row.copy()

    choose_token(row, row.max(), make_truncation(0.5, 0, 0.9, 0.0), 0.3, Scratch(row.size))
    choose_token(row, row.max(), make_truncation(0.5, 50, 0.9, 0.1), 0.3, Scratch(row.size))

    assert np.array_equal(row, before)

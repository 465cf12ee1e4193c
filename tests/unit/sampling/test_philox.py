"""Random numbers by counter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.inference.sampling.philox import philox, uniforms

WORD = st.integers(0, 2**32 - 1)

# Known answers published with Random123 (kat_vectors, philox4x32 with 10 rounds): counter, key, result.
KNOWN_ANSWERS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def plain_philox(counter: tuple[int, ...], key: int) -> list[int]:
    c0, c1, c2, c3 = counter
    k0, k1 = key % 2**32, key >> 32
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 % 2**32, (p0 >> 32) ^ c3 ^ k1, p0 % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [c0, c1, c2, c3]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_gives_the_published_answers(counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]) -> None:
    keys = np.array([key[0] | key[1] << 32], dtype=np.uint64)

    words = philox(keys, np.array(counter, dtype=np.uint64)[:, None])

    assert tuple(words[:, 0].tolist()) == expected


@given(st.lists(st.tuples(st.tuples(WORD, WORD, WORD, WORD), st.integers(0, 2**64 - 1)), min_size=1, max_size=40))
def test_a_number_depends_on_its_own_key_and_counter_alone(cells: list[tuple[tuple[int, ...], int]]) -> None:
    keys = np.array([key for _, key in cells], dtype=np.uint64)
    counters = np.array([counter for counter, _ in cells], dtype=np.uint64).T

    words = philox(keys, counters)

    assert words.T.tolist() == [plain_philox(counter, key) for counter, key in cells]


def test_uniforms_are_spread_evenly_over_zero_to_one() -> None:
    positions = np.arange(100_000, dtype=np.uint64)
    counters = np.stack([positions, *np.zeros((3, positions.size), dtype=np.uint64)])

    numbers = uniforms(np.full(positions.size, 7, dtype=np.uint64), counters)

    assert 0.0 <= numbers.min() < numbers.max() < 1.0
    counts = np.histogram(numbers, bins=100, range=(0, 1))[0]
    assert ((counts - 1000) ** 2 / 1000).sum() < 99 + 4 * (2 * 99) ** 0.5

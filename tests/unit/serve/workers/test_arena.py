"""Shared-memory arenas against a plain model of what is allocated."""

from __future__ import annotations

import gc
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from millpond.serve.workers.arena import WARM_BYTES, ArenaReader, ArenaWriter, make_file

SIZE = 1 << 20


def make_pair(num_bytes: int = SIZE) -> tuple[ArenaWriter, ArenaReader]:
    descriptor = make_file(num_bytes)
    try:
        return ArenaWriter(descriptor, num_bytes), ArenaReader(descriptor, num_bytes)
    finally:
        os.close(descriptor)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 200_000)), max_size=60))
def test_places_never_overlap_and_all_comes_back(steps: list[tuple[bool, int]]) -> None:
    writer, _ = make_pair()
    held: dict[int, int] = {}
    for takes, number in steps:
        if takes or not held:
            offset = writer.allocate(number)
            if offset is None:
                continue
            assert offset % 64 == 0
            assert 0 <= offset <= SIZE - number
            assert all(offset + number <= other or other + size <= offset for other, size in held.items())
            held[offset] = max(number, 1)
        else:
            offset = sorted(held)[number % len(held)]
            del held[offset]
            writer.free(offset)
    for offset in held:
        writer.free(offset)
    assert writer.used_bytes == 0
    assert writer.allocate(SIZE) == 0


def test_freeing_what_is_not_allocated_is_an_error() -> None:
    writer, _ = make_pair()
    with pytest.raises(ValueError, match="nothing is allocated at 64"):
        writer.free(64)


def test_a_place_is_free_when_the_last_view_on_it_is_gone() -> None:
    writer, reader = make_pair()
    data = np.arange(1000, dtype=np.int32)
    offset = writer.allocate(data.nbytes)
    assert offset is not None
    writer.write(offset, data)
    view = reader.view(offset, data.nbytes).view(np.int32).reshape(10, 100)
    part = view[3:5, ::2].T
    assert reader.take_freed() == []
    del view
    gc.collect()
    assert reader.take_freed() == []
    np.testing.assert_array_equal(part, data.reshape(10, 100)[3:5, ::2].T)
    del part
    assert reader.take_freed() == [offset]


def test_an_array_of_any_layout_is_written_in_c_order() -> None:
    writer, reader = make_pair()
    data = np.arange(60, dtype=np.float64).reshape(3, 4, 5).transpose(2, 0, 1)[::-1]
    offset = writer.allocate(data.nbytes)
    assert offset is not None
    writer.write(offset, data)
    np.testing.assert_array_equal(reader.view(offset, data.nbytes).view(np.float64).reshape(data.shape), data)


def test_pages_beyond_the_warm_part_go_back_to_the_system() -> None:
    num_bytes = 4 * WARM_BYTES
    descriptor = make_file(num_bytes)
    try:
        writer = ArenaWriter(descriptor, num_bytes)
        offset = writer.allocate(2 * WARM_BYTES)
        assert offset is not None
        writer.write(offset, np.ones(2 * WARM_BYTES, np.uint8))
        assert os.fstat(descriptor).st_blocks * 512 >= 2 * WARM_BYTES
        writer.free(offset)
        assert os.fstat(descriptor).st_blocks * 512 <= WARM_BYTES
    finally:
        os.close(descriptor)

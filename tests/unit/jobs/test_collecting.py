from __future__ import annotations

import gc
import weakref
from collections.abc import Iterator

import pytest

from millpond.jobs.collecting import Collecting


class Knot:
    """Ties itself into a cycle."""

    def __init__(self) -> None:
        self.itself = self


@pytest.fixture
def full_collections() -> Iterator[list[int]]:
    """Grows with every full collection."""
    seen: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start" and info["generation"] == 2:
            seen.append(1)

    gc.callbacks.append(note)
    yield seen
    gc.callbacks.remove(note)


def test_the_interpreter_never_looks_through_everything_by_itself(full_collections: list[int]) -> None:
    with Collecting():
        full_collections.clear()
        kept = [[[number]] for number in range(400_000)]
        assert full_collections == []
        assert len(kept) == 400_000
    assert gc.get_freeze_count() == 0


def test_what_came_since_is_looked_through_at_rest_once_it_is_much() -> None:
    with Collecting() as collecting:
        knot = weakref.ref(Knot())
        kept = [[[number]] for number in range(400_000)]
        collecting.rest(0.0, is_idle=False)
        assert knot() is None
        assert len(kept) == 400_000


def test_a_knot_that_was_old_already_is_found_when_idle(full_collections: list[int]) -> None:
    strong = Knot()
    knot = weakref.ref(strong)
    with Collecting() as collecting:
        collecting.rest(0.0, is_idle=True)
        del strong
        full_collections.clear()
        collecting.rest(500.0, is_idle=True)
        collecting.rest(700.0, is_idle=False)
        assert full_collections == []
        assert knot() is not None
        collecting.rest(700.0, is_idle=True)
        assert knot() is None

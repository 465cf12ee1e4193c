"""Random histories: nothing is held in part, no quota is broken, no job is lost or started twice."""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.sim.jobs.world import World

NAMES = st.sampled_from(
    ["submit"] * 6 + ["step"] * 6 + ["deliver"] * 8 + ["finish"] * 3
    + ["error", "again", "lose", "join", "join", "cordon", "cancel", "restart"]
)  # fmt: skip
HISTORIES = st.lists(st.tuples(NAMES, st.integers(0, 1000), st.integers(0, 10)), min_size=1, max_size=60)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(HISTORIES)
def test_promises_hold_in_random_histories(history: list[tuple[str, int, int]]) -> None:
    World().play(history)

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


def test_a_job_that_ended_while_a_start_was_refused_and_then_must_leave_is_not_started_again() -> None:
    world = World()
    world.play(
        [
            ("cordon", 0, 0), ("cordon", 1, 0),  # leaves one machine with four devices
            ("submit", 3, 0), ("step", 0, 0), ("deliver", 0, 1),  # the parameter servers run on it
            ("error", 0, 0), ("step", 0, 0), ("finish", 0, 1),  # the worker's start is refused, and the job ends
            ("submit", 7, 0), ("restart", 0, 0), ("deliver", 1, 1),  # a more important job takes the machine meanwhile
        ]
    )  # fmt: skip
    assert world.over == {"j0", "j1"}
    assert world.leaving == {("j0", 1)}
    assert world.reserved == {("j0", 1), ("j1", 1)}

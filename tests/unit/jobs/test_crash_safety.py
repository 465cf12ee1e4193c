"""Random lives of a cluster: submissions, ends, deletions, repeated reports, controllers that die at any line."""

from __future__ import annotations

import contextlib
import random
from collections import Counter
from pathlib import Path

import pytest

from millpond.api.job import JobPhase
from tests.support.jobs_room import JobsRoom

TEXTS = (
    "{name: %s, run: x, roles: {worker: {replicas: 2}}}",
    "{name: %s, framework: tf, run: x, roles: {ps: {}, worker: {replicas: 3}}}",
    "{name: %s, framework: mpi, run: x, roles: {launcher: {}, worker: {replicas: 2}}}",
    "{name: %s, framework: pytorch, run: x, priority: 5, roles: {master: {}, worker: {replicas: 2}}}",
    "{name: %s, run: x, roles: {worker: {replicas: 1, restart: OnFailure}}}",
)
CPUS = 6.0


class Killed(Exception):
    """The controller was killed here."""


def kill_somewhere(room: JobsRoom, chance: random.Random, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets the next cycle die before or after the save, or between two starts."""
    place = chance.choice(["_take_new", "_save", "_carry_out", "cluster"])
    if place == "cluster":
        start, left = room.cluster.start, [chance.randrange(3)]

        def start_some(run: object) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            start(run)  # type: ignore[arg-type]

        monkeypatch.setattr(room.cluster, "start", start_some)
    else:

        def die(*_: object) -> None:
            raise Killed

        monkeypatch.setattr(room.controller, place, die)
    with contextlib.suppress(Killed):
        room.turn(0.5, 1)
    monkeypatch.undo()
    room.restart()


def check(room: JobsRoom) -> None:
    replicas = Counter((run.uid, run.role, run.index) for run in room.cluster.live)
    assert all(count == 1 for count in replicas.values())
    live_jobs = {run.uid for run in room.cluster.live}
    states = {state.uid: state for state in room.controller.jobs.values()}
    held = sum(
        role.replicas * role.resources.cpus
        for uid in live_jobs
        for role in states[uid].spec.roles
    )
    assert held <= CPUS
    assert all(states[uid].reservation is not None for uid in live_jobs)


@pytest.mark.parametrize("seed", range(12))
def test_nothing_is_lost_or_started_twice(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live_through(seed, tmp_path, monkeypatch)


@pytest.mark.stress
def test_nothing_is_lost_in_a_thousand_lives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(1000, 1250):
        place = tmp_path / str(seed)
        place.mkdir()
        live_through(seed, place, monkeypatch)


def live_through(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chance = random.Random(seed)
    room = JobsRoom(tmp_path / "jobs.sqlite", cpus=CPUS)
    room.cluster.repeats = lambda said: chance.sample(said, min(len(said), chance.randrange(3)))
    submitted = []
    for step in range(60):
        match chance.choice(["submit", "end", "end", "fail", "delete", "kill", "turn", "turn"]):
            case "submit":
                submitted += room.submit(chance.choice(TEXTS) % f"j{step}")
            case "end" | "fail" as verb if room.cluster.live:
                run_id = chance.choice(sorted(room.cluster.live, key=str))
                room.cluster.end(run_id, 0 if verb == "end" else chance.choice([1, 137]))
            case "delete" if room.controller.jobs and chance.random() < 0.3:
                room.store.ask(chance.choice(sorted(room.controller.jobs)), "delete")
            case "kill":
                kill_somewhere(room, chance, monkeypatch)
            case _:
                room.turn(0.5, 1)
        room.turn(0.5, 1)
        check(room)
    for _ in range(300):
        for run_id in sorted(room.cluster.live, key=str):
            room.cluster.end(run_id, 0)
        room.turn(5.0, 1)
        check(room)
        if room.controller.is_idle:
            break
    ends = {record.state.uid: record.state for uid in submitted for record in room.store.find(uid)}
    assert set(ends) == set(submitted)
    assert all(state.phase in (JobPhase.SUCCEEDED, JobPhase.FAILED) for state in ends.values())
    assert not room.cluster.live

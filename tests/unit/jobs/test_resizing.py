"""Jobs that are made larger and smaller while they live."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from millpond.api.job import JobNotFoundError, JobPhase, SpecError
from millpond.jobs.client import JobsClient
from millpond.jobs.resizing import elastic_role
from millpond.jobs.scheduling.log import replay
from millpond.jobs.spec import load_jobs
from tests.support.jobs_room import JobsRoom

PYTORCH = "{name: e, framework: pytorch, run: x, roles: {master: {}, worker: {replicas: %d, max_replicas: 6}}}"


def scale(room: JobsRoom, name: str, replicas: int, role: str = "Worker") -> None:
    room.store.ask(room.status(name).uid, f"scale:{role}={replicas}")
    room.turn(cycles=8)


def live(room: JobsRoom) -> list[str]:
    return sorted(f"{run.role}-{run.index}" for run in room.cluster.live)


def test_a_larger_job_starts_again_whole(tmp_path: Path) -> None:
    room = JobsRoom(tmp_path / "jobs.sqlite")
    room.submit(PYTORCH % 1)
    room.turn()
    scale(room, "e", 3)
    assert live(room) == ["Master-0", "Worker-0", "Worker-1", "Worker-2"]
    assert {run.env["WORLD_SIZE"] for run in room.cluster.live.values()} == {"4"}
    assert room.status("e").phase is JobPhase.RUNNING
    replay(room.log)


def test_a_replica_that_comes_back_is_another_attempt(tmp_path: Path) -> None:
    room = JobsRoom(tmp_path / "jobs.sqlite")
    room.submit(PYTORCH % 2)
    room.turn()
    scale(room, "e", 1)
    assert live(room) == ["Master-0", "Worker-0"]
    scale(room, "e", 2)
    assert live(room) == ["Master-0", "Worker-0", "Worker-1"]
    assert len({run for run in room.cluster.runs if (run.role, run.index) == ("Worker", 1)}) == 2


def test_a_job_that_waits_asks_for_the_new_size(tmp_path: Path) -> None:
    room = JobsRoom(tmp_path / "jobs.sqlite", cpus=4)
    room.submit(PYTORCH % 5)
    room.turn()
    assert room.status("e").phase is JobPhase.QUEUING
    scale(room, "e", 3)
    assert len(live(room)) == 4
    replay(room.log)


def test_a_size_that_does_not_fit_waits_whole(tmp_path: Path) -> None:
    room = JobsRoom(tmp_path / "jobs.sqlite", cpus=4)
    room.submit(PYTORCH % 2)
    room.turn()
    scale(room, "e", 6)
    assert live(room) == []
    assert "room for 4" in room.status("e").waiting
    scale(room, "e", 1)
    assert live(room) == ["Master-0", "Worker-0"]


def test_what_has_ended_is_not_scaled(tmp_path: Path) -> None:
    room = JobsRoom(tmp_path / "jobs.sqlite")
    room.submit("{name: a, run: x}")
    room.turn()
    room.cluster.end(room.cluster.find("Worker", 0), 0)
    room.turn()
    scale(room, "a", 3)
    assert (room.status("a").phase, live(room)) == (JobPhase.SUCCEEDED, [])


@pytest.mark.parametrize("seed", range(8))
def test_random_sizes_and_dead_controllers_end_at_the_last_size(seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)
    room = JobsRoom(tmp_path / "jobs.sqlite", cpus=7)
    room.submit(PYTORCH % 2)
    wanted = 2
    for _ in range(40):
        if chance.random() < 0.4:
            wanted = chance.randrange(1, 7)
            room.store.ask(room.status("e").uid, f"scale:Worker={wanted}")
        if chance.random() < 0.2:
            room.restart()
        if chance.random() < 0.2 and room.cluster.live:
            room.cluster.end(chance.choice(sorted(room.cluster.live, key=str)), 137)
        room.turn(chance.choice([0.1, 1.0]), 1)
        assert len({(run.role, run.index) for run in room.cluster.live}) == len(room.cluster.live) <= 7
    room.turn(5.0, 30)
    assert live(room) == ["Master-0", *(f"Worker-{index}" for index in range(wanted))]
    replay(room.log)


def test_bounds_are_checked_before_anything_happens(tmp_path: Path) -> None:
    client = JobsClient(tmp_path, starts_controller=False)
    client.submit("{name: e, run: x, roles: {worker: {replicas: 2, min_replicas: 2, max_replicas: 4}}}")
    for wrong in (1, 5):
        with pytest.raises(SpecError, match="can have 2 to 4 replicas"):
            client.scale("e", wrong)
    assert client.scale("e", 3)[1] == "Worker"
    with pytest.raises(JobNotFoundError, match="no role 'ps'"):
        client.scale("e", 3, "ps")
    with pytest.raises(SpecError, match="maximum of 1 is less"):
        client.submit("{name: f, run: x, roles: {worker: {replicas: 2, max_replicas: 1}}}")
    client.close()


def test_the_master_stays_one() -> None:
    (spec,) = load_jobs(json.dumps({"name": "a", "framework": "pytorch", "run": "x"}))
    with pytest.raises(JobNotFoundError, match="no role that can be scaled"):
        elastic_role(spec, None)

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.jobs_room import JobsRoom


def make_room(tmp_path: Path, policy: str, more: str = "") -> JobsRoom:
    room = JobsRoom(tmp_path / "jobs.sqlite")
    room.now_s = 1_800_000_000.0  # 08:00:00 UTC
    room.submit(f"{{name: tick, run: x, cron: {{schedule: '* * * * *', concurrency: {policy}{more}}}}}")
    room.turn(1.0, 1)
    return room


def names(room: JobsRoom) -> list[str]:
    return sorted(record.state.spec.name for record in room.store.records() if record.state.cron is None)


def test_a_cron_makes_a_job_when_it_is_due(tmp_path: Path) -> None:
    room = make_room(tmp_path, "Allow")
    assert names(room) == []
    room.turn(60.0, 1)
    assert names(room) == ["tick-202701150801"]
    room.turn(60.0, 1)
    assert len(names(room)) == 2
    assert len(room.cluster.live) == 2


def test_forbid_makes_no_second_job(tmp_path: Path) -> None:
    room = make_room(tmp_path, "Forbid")
    room.turn(60.0, 3)
    assert len(names(room)) == 1


def test_replace_stops_the_job_before(tmp_path: Path) -> None:
    room = make_room(tmp_path, "Replace")
    room.turn(60.0, 2)
    room.turn(1.0, 3)
    assert names(room) == ["tick-202701150802"]
    assert len(room.cluster.live) == 1


def test_a_controller_that_was_away_makes_up_for_one_run_only(tmp_path: Path) -> None:
    room = make_room(tmp_path, "Allow")
    room.now_s += 3600
    room.restart()
    room.turn(1.0, 2)
    assert names(room) == ["tick-202701150900"]


def test_only_the_last_ended_jobs_are_kept(tmp_path: Path) -> None:
    room = make_room(tmp_path, "Allow", ", history_limit: 1")
    for _ in range(3):
        room.turn(60.0, 1)
        for run_id in list(room.cluster.live):
            room.cluster.end(run_id, 0)
    room.turn(1.0, 3)
    assert names(room) == ["tick-202701150803"]


@pytest.mark.parametrize("verb", ["suspend", "delete"])
def test_a_cron_that_is_stopped_makes_no_jobs(tmp_path: Path, verb: str) -> None:
    room = make_room(tmp_path, "Allow")
    room.store.ask(room.status("tick").uid, verb)
    room.turn(60.0, 3)
    assert names(room) == []


def test_a_resumed_cron_goes_on(tmp_path: Path) -> None:
    room = make_room(tmp_path, "Allow")
    uid = room.status("tick").uid
    room.store.ask(uid, "suspend")
    room.turn(60.0, 3)
    room.store.ask(uid, "resume")
    room.turn(60.0, 1)
    assert names(room) == []
    room.turn(60.0, 1)
    assert len(names(room)) == 1

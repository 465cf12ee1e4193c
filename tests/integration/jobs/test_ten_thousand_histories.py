"""Ten thousand random histories in one go; `pytest -m stress -rP` on this file prints what happened in them.

Most drive the scheduler among machines that die and come back, an API that refuses, events that are slow, repeated and
out of turn, and restarts. A part drives the whole controller on its store, killed at any line. A few are real: a
controller process is sent SIGKILL while real processes run, and the next one takes up its store.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from pathlib import Path

import pytest

from millpond.api.job import JobPhase
from tests.integration.jobs.conftest import LocalRoom
from tests.sim.jobs.world import Act, Tally, World
from tests.unit.jobs.test_crash_safety import live_through

pytestmark = pytest.mark.stress

SCHEDULER, CONTROLLER, PROCESS = 9000, 950, 50
ACTS = (
    ["submit"] * 6 + ["step"] * 6 + ["deliver"] * 8 + ["finish"] * 3
    + ["error", "again", "lose", "join", "join", "cordon", "cancel", "restart"]
)  # fmt: skip


def random_acts(chance: random.Random) -> list[Act]:
    return [(chance.choice(ACTS), chance.randrange(1001), chance.randrange(11)) for _ in range(chance.randint(20, 80))]


def play(seeds: range) -> Tally:
    """Plays one history a seed; the first broken promise raises."""
    tally = Tally()
    for seed in seeds:
        World(tally).play(random_acts(random.Random(seed)))
    return tally


def chunks(count: int, size: int = 100) -> Iterator[range]:
    return (range(start, min(start + size, count)) for start in range(0, count, size))


def test_nine_thousand_histories_of_the_scheduler_break_no_promise() -> None:
    tally, began = Tally(), time.monotonic()
    with ProcessPoolExecutor(os.cpu_count(), multiprocessing.get_context("spawn")) as pool:
        for part in pool.map(play, chunks(SCHEDULER)):
            for field in fields(Tally):
                setattr(tally, field.name, getattr(tally, field.name) + getattr(part, field.name))
    print(tally, f"{time.monotonic() - began:.0f} s")
    assert tally.histories == SCHEDULER
    assert min(tally.node_losses, tally.kills, tally.api_errors, tally.late_events) > SCHEDULER // 10
    assert tally.broken == 0


def test_controllers_killed_at_any_line_lose_nothing_and_start_nothing_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = time.process_time()
    for seed in range(CONTROLLER):
        place = tmp_path / str(seed)
        place.mkdir()
        live_through(seed, place, monkeypatch)
    print(f"{CONTROLLER} lives of a controller, {time.process_time() - began:.0f} s of processor time")


def test_real_controllers_that_are_killed_run_every_job_to_its_end_once(tmp_path: Path) -> None:
    kills, began = 0, time.monotonic()
    for seed in range(PROCESS):
        kills += live_and_die(random.Random(seed), tmp_path / str(seed))
    print(f"{PROCESS} directories, {kills} controllers killed, {time.monotonic() - began:.0f} s")
    assert kills >= PROCESS


def live_and_die(chance: random.Random, root: Path) -> int:
    """Submits jobs while controllers die. Returns how many did."""
    root.mkdir()
    room = LocalRoom(root)
    expected: list[str] = []
    kills = 0
    for number in range(3):
        replicas = chance.randint(1, 2)
        code = chance.choice([0, 0, 137])  # the second attempt of one that ended like a kill succeeds
        line = f"echo $MILLPOND_JOB_NAME/$MILLPOND_JOB_INDEX/$MILLPOND_JOB_ATTEMPT >> starts; sleep 0.2; " \
               f"[ $MILLPOND_JOB_ATTEMPT = 2 ] || exit {code}"  # fmt: skip
        room.client.submit(
            f"{{name: j{number}, run: '{line}', roles: {{worker: {{replicas: {replicas}, restart: ExitCode}}}}}}"
        )
        attempts = range(1, 3 if code else 2)
        expected += [f"j{number}/{index}/{attempt}" for index in range(replicas) for attempt in attempts]
        time.sleep(chance.uniform(0.0, 0.4))
        if chance.random() < 0.7 or not kills:
            room.kill_controller()
            room.start_controller()
            kills += 1
    ends = [room.wait_end(f"j{number}", 60.0).phase for number in range(3)]
    started = Counter((room.work / "starts").read_text().split())
    room.close()
    assert ends == [JobPhase.SUCCEEDED] * 3
    assert started == Counter(expected)
    return kills

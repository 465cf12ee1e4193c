"""An elastic job of real processes: its processes agree about how many they are, before and after."""

from __future__ import annotations

import pytest

from millpond.cli.main import main
from tests.integration.jobs.conftest import LocalRoom, until

TRAIN = "echo $MILLPOND_JOB_INDEX of $MILLPOND_JOB_REPLICAS; exec sleep 60"


def test_arena_scales_a_job_out_and_in(
    room: LocalRoom, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("MILLPOND_DATA", str(room.root))
    monkeypatch.chdir(room.work)
    room.client.submit(f"{{name: et, run: '{TRAIN}', roles: {{worker: {{replicas: 1, cpus: 0.1, max_replicas: 2}}}}}}")
    room.wait_running("et")
    assert main(["arena", "scaleout", "etjob", "--name", "et"]) == 0
    assert "Worker of et: 1 -> 2" in capsys.readouterr().out
    until(lambda: room.log("et", "et-worker-1") == "1 of 2\n")
    until(lambda: room.log("et", "et-worker-0") == "0 of 1\n0 of 2\n")
    assert main(["arena", "scaleout", "etjob", "--name", "et"]) == 1
    assert "can have 1 to 2 replicas, not 3" in capsys.readouterr().err
    assert main(["jobs", "scale", "et", "1", "--timeout", "60"]) == 0
    assert [replica.index for replica in room.client.get("et").replicas] == [0]

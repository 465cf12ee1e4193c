"""What Arena's flags become; nothing is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from millpond.api.job import JobSpec, RestartPolicy, StartAfter
from millpond.cli.main import main
from millpond.jobs import client
from millpond.jobs.client import JobsClient


@pytest.fixture(autouse=True)
def no_controller(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MILLPOND_DATA", str(tmp_path))
    monkeypatch.setattr(client, "ensure_controller", lambda _place: None)


def submit(tmp_path: Path, *arguments: str) -> JobSpec:
    assert main(["arena", "submit", *arguments]) == 0
    jobs = JobsClient(tmp_path / "jobs", starts_controller=False)
    try:
        return jobs.spec(jobs.jobs()[0].uid)
    finally:
        jobs.close()


def test_the_line_of_the_article_works(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = submit(
        tmp_path, "pytorchjob", "--gpus=1", "--image", "example/fastertransformer:torch-0.0.1", "--name",
        "convert-bloom", "--workers", "1", "--namespace", "default-group", "--data", "bloom-pvc:/mnt",
        "python /FasterTransformer/convert.py -i /mnt/model/bloom-7b1 -o /mnt/out -tp 2 -dt fp16 -p 64 -v",
    )  # fmt: skip
    assert (spec.name, spec.namespace, [role.name for role in spec.roles]) == (
        "convert-bloom", "default-group", ["Master"],
    )  # fmt: skip
    (master,) = spec.roles
    assert master.command[:2] == ("/bin/sh", "-c")
    assert master.command[2].endswith("-p 64 -v")
    assert (master.resources.devices, master.image) == (1, "example/fastertransformer:torch-0.0.1")
    assert "The Job convert-bloom has been submitted successfully" in capsys.readouterr().out


def test_workers_of_a_pytorchjob_count_the_master(tmp_path: Path) -> None:
    spec = submit(tmp_path, "pytorchjob", "--name=a", "--workers=3", "--nproc-per-node=2", "x")
    assert [(role.name, role.replicas) for role in spec.roles] == [("Master", 1), ("Worker", 2)]
    assert spec.options["nprocPerNode"] == 2


def test_a_tfjob_has_the_roles_that_were_asked_for(tmp_path: Path) -> None:
    spec = submit(
        tmp_path, "tfjob", "--name=a", "--ps=2", "--workers=3", "--chief", "--gpus=1", "--ps-cpu=500m",
        "--worker-memory=2Gi", "--worker-port=4000", "--role-sequence=w,p", "--success-policy=AllWorkers", "x",
    )  # fmt: skip
    roles = {role.name: role for role in spec.roles}
    assert {name: role.replicas for name, role in roles.items()} == {"PS": 2, "Chief": 1, "Worker": 3}
    assert (roles["PS"].resources.cpus, roles["PS"].resources.devices) == (0.5, 0)
    assert (roles["Worker"].resources.memory_bytes, roles["Worker"].port) == (2 << 30, 4000)
    assert (roles["Worker"].after, roles["PS"].after) == ((), (StartAfter("Worker"),))


def test_an_mpijob_runs_its_command_on_the_launcher(tmp_path: Path) -> None:
    spec = submit(tmp_path, "mpijob", "--name=a", "--workers=2", "--gpus=1", "--gputopology", "mpirun", "train")
    roles = {role.name: role for role in spec.roles}
    assert roles["Launcher"].command == ("/bin/sh", "-c", "mpirun train")
    assert roles["Launcher"].resources.devices == 0
    assert roles["Worker"].command == ("sleep", "365d")


def test_common_flags_reach_the_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    spec = submit(
        tmp_path, "pytorchjob", "--name=a", "-e", "A=1", "-e", "B=x=y", "--cpu=2", "--memory=1Gi", "-l", "team=x",
        "-a", "note=y", "-p", "7", "--queue=gold", "--clean-task-policy=All", "--running-timeout=1h", "--retry=4",
        "--ttl-after-finished=30m", "--job-restart-policy=Never", "--tensorboard", "--logdir=/logs", "--sync-mode=git",
        "--sync-source=https://example.com/m.git", "--selector=disk=ssd", "--rdma", "--toleration=all", "x",
    )  # fmt: skip
    (role,) = spec.roles
    assert (role.env, role.resources.cpus, role.resources.memory_bytes) == ({"A": "1", "B": "x=y"}, 2.0, 1 << 30)
    assert (spec.labels, spec.annotations, spec.priority, spec.tenant) == ({"team": "x"}, {"note": "y"}, 7, "gold")
    assert (spec.clean_policy.value, spec.active_deadline_s, spec.ttl_s, spec.backoff_limit) == ("All", 3600, 1800, 4)
    assert (role.restart, role.node_selector) == (RestartPolicy.NEVER, {"disk": "ssd"})
    assert spec.code is not None
    assert spec.tensorboard is not None
    noted = capsys.readouterr().err
    assert "--rdma has no effect" in noted
    assert "--toleration has no effect" in noted


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["pytorchjob", "--name=Bad", "x"], 1, "small letters"),
        (["pytorchjob", "x"], 2, "Missing option '--name'"),
        (["pytorchjob", "--name=a"], 1, "no command"),
        (["pytorchjob", "--name=a", "--worker=2", "x"], 2, "--workers"),
        (["pytorchjob", "--name=a", "-e", "A", "x"], 2, "not NAME=VALUE"),
        (["pytorchjob", "--name=a", "--cpu=lots", "x"], 1, "not an amount"),
        (["tfjob", "--name=a", "--role-sequence=w,z", "x"], 2, "there is no role 'z'"),
    ],
)
def test_a_wrong_line_creates_nothing(
    arguments: list[str], code: int, says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["arena", "submit", *arguments]) == code
    assert says in capsys.readouterr().err
    jobs = JobsClient(tmp_path / "jobs", starts_controller=False)
    assert jobs.jobs() == []
    jobs.close()


def test_the_namespace_may_stand_before_the_command(tmp_path: Path) -> None:
    assert main(["arena", "-n", "team", "submit", "job", "--name=a", "x"]) == 0
    jobs = JobsClient(tmp_path / "jobs", starts_controller=False)
    assert jobs.jobs("team")[0].name == "a"
    jobs.close()


def test_a_cron_is_submitted_with_a_jobs_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["tfjob", "--name=nightly", "--schedule=0 3 * * *", "--concurrency-policy=Forbid", "--ps=1", "x"]
    assert main(["arena", "cron", *line]) == 0
    capsys.readouterr()
    assert main(["arena", "cron", "list"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0].split() == ["NAME", "TYPE", "SCHEDULE", "SUSPEND", "AGE"]
    assert shown[1].startswith("nightly  tf    0 3 * * *  false")
    assert main(["arena", "cron", "get", "nightly"]) == 0
    assert "Concurrency: Forbid" in capsys.readouterr().out


def test_volcanos_tasks_are_a_gang_of_workers(tmp_path: Path) -> None:
    flags = ("--name=v", "--minAvailable=2", "--taskReplicas=3", "--taskCPU=2", "--taskMemory=1Gi", "--queue=team")
    spec = submit(tmp_path, "volcanojob", *flags, "run")
    (role,) = spec.roles
    assert (role.replicas, role.min_replicas, spec.tenant) == (3, 2, "team")
    assert (role.resources.cpus, role.resources.memory_bytes) == (2.0, 1 << 30)


def test_a_deepspeed_job_has_a_launcher_and_a_host_file(tmp_path: Path) -> None:
    spec = submit(tmp_path, "deepspeedjob", "--name=d", "--workers=2", "--gpus=4", "deepspeed train.py")
    assert (spec.framework, [(role.name, role.replicas) for role in spec.roles]) == (
        "mpi", [("Worker", 2), ("Launcher", 1)],
    )  # fmt: skip

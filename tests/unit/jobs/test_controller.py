from __future__ import annotations

import json
from pathlib import Path

import pytest

from millpond.api.job import JobExistsError, JobPhase, ReplicaPhase
from millpond.jobs.scheduling.log import replay
from millpond.jobs.scheduling.types import TenantSpec
from tests.support.jobs_room import JobsRoom


@pytest.fixture
def room(tmp_path: Path) -> JobsRoom:
    return JobsRoom(tmp_path / "jobs.sqlite")


TF = "{name: t, framework: tf, run: x, roles: {ps: {}, worker: {replicas: 2}}}"


def test_a_job_runs_and_succeeds(room: JobsRoom) -> None:
    room.submit("{name: a, run: x, roles: {worker: {replicas: 2}}}")
    room.turn()
    assert room.status("a").phase is JobPhase.RUNNING
    room.cluster.end(room.cluster.find("Worker", 0), 0)
    room.turn()
    assert room.status("a").phase is JobPhase.RUNNING
    room.cluster.end(room.cluster.find("Worker", 1), 0)
    room.turn()
    status = room.status("a")
    assert status.phase is JobPhase.SUCCEEDED
    assert [(c.type, c.is_true) for c in status.conditions] == [
        (JobPhase.CREATED, True),
        (JobPhase.QUEUING, False),
        (JobPhase.RUNNING, False),
        (JobPhase.SUCCEEDED, True),
    ]


def test_workers_start_when_the_parameter_servers_run(room: JobsRoom) -> None:
    room.submit(TF)
    room.turn(cycles=1)
    assert {run.role for run in room.cluster.live} == {"PS"}
    room.turn()
    assert sorted(run.role for run in room.cluster.live) == ["PS", "Worker", "Worker"]


def test_the_environment_reaches_the_process(room: JobsRoom) -> None:
    room.submit(TF)
    room.turn()
    config = json.loads(room.cluster.live[room.cluster.find("Worker", 1)].env["TF_CONFIG"])
    assert config["task"] == {"type": "worker", "index": 1}
    assert config["cluster"]["ps"] == ["node:20000"]


def test_two_jobs_that_fit_one_by_one_run_one_after_the_other(tmp_path: Path) -> None:
    room = JobsRoom(tmp_path / "jobs.sqlite", cpus=4)
    for name in ("a", "b"):
        room.submit(TF.replace("name: t", f"name: {name}"))
    room.turn()
    assert {run.uid for run in room.cluster.live} == {room.status("a").uid}
    waiting = room.status("b").waiting
    assert "Place 1 in the queue." in waiting
    assert room.status("b").explanation["holders"] == ["a"]
    room.cluster.end(room.cluster.find("Worker", 0), 0)
    room.turn()
    assert room.status("a").phase is JobPhase.SUCCEEDED
    assert {run.uid for run in room.cluster.live} == {room.status("b").uid}


@pytest.mark.parametrize(
    ("policy", "exit_code", "phase", "restarts"),
    [
        ("Never", 1, JobPhase.FAILED, 0),
        ("OnFailure", 1, JobPhase.RUNNING, 1),
        ("OnFailure", 0, JobPhase.SUCCEEDED, 0),
        ("Always", 0, JobPhase.RUNNING, 1),
        ("ExitCode", 1, JobPhase.FAILED, 0),
        ("ExitCode", 2, JobPhase.FAILED, 0),
        ("ExitCode", 139, JobPhase.FAILED, 0),
        ("ExitCode", 200, JobPhase.FAILED, 0),
        ("ExitCode", 130, JobPhase.RUNNING, 1),
        ("ExitCode", 137, JobPhase.RUNNING, 1),
        ("ExitCode", 138, JobPhase.RUNNING, 1),
        ("ExitCode", 143, JobPhase.RUNNING, 1),
    ],
)
def test_the_restart_policy_decides(
    room: JobsRoom, policy: str, exit_code: int, phase: JobPhase, restarts: int
) -> None:
    room.submit(f"{{name: a, run: x, roles: {{worker: {{restart: {policy}}}}}}}")
    room.turn()
    room.cluster.end(room.cluster.find("Worker"), exit_code)
    room.turn(1.0)
    status = room.status("a")
    assert (status.phase, status.restarts) == (phase, restarts)


def test_a_retryable_reason_counts_as_a_retryable_code(room: JobsRoom) -> None:
    room.submit("{name: a, run: x, roles: {worker: {restart: ExitCode}}}")
    room.turn()
    room.cluster.end(room.cluster.find("Worker"), 1, "OOMKilled")
    room.turn(1.0)
    assert room.status("a").phase is JobPhase.RUNNING


def test_restarts_wait_longer_each_time_and_end_at_the_limit(room: JobsRoom) -> None:
    room.submit("{name: a, run: x, backoff_limit: 2, roles: {worker: {restart: OnFailure}}}")
    for _ in range(3):
        room.turn(2.0)
        room.cluster.end(room.cluster.find("Worker"), 1)
        room.turn(0.1, 1)
    status = room.status("a")
    assert (status.phase, status.conditions[-1].reason) == (JobPhase.FAILED, "BackoffLimitExceeded")


@pytest.mark.parametrize(("policy", "left"), [("none", {"PS", "Worker"}), ("running", set()), ("all", set())])
def test_the_clean_up_policy_decides_what_goes(room: JobsRoom, policy: str, left: set[str]) -> None:
    uid = room.submit(TF.replace("run: x", f"run: x, clean_up: {policy}"))[0]
    room.turn()
    room.cluster.end(room.cluster.find("Worker", 0), 0)
    room.turn()
    assert room.status("t").phase is JobPhase.SUCCEEDED
    assert {run.role for run in room.cluster.live} == left
    assert room.cluster.removed == ([uid] if policy == "all" else [])


def test_what_does_not_obey_is_forced(room: JobsRoom) -> None:
    room.cluster.obeys_stop = False
    room.submit("{name: a, run: x}")
    room.turn()
    room.store.ask(room.status("a").uid, "delete")
    room.turn(2.0, 3)
    assert room.cluster.live
    room.turn(2.0, 6)
    assert not room.cluster.live


def test_a_job_that_runs_too_long_fails(room: JobsRoom) -> None:
    room.submit("{name: a, run: x, deadline: 60}")
    room.turn()
    room.turn(61.0, 2)
    assert room.status("a").conditions[-1].reason == "DeadlineExceeded"
    assert not room.cluster.live


def test_a_record_outlives_its_job(room: JobsRoom) -> None:
    room.submit("{name: a, run: x, ttl: 30}")
    room.turn()
    room.cluster.end(room.cluster.find("Worker"), 0)
    room.turn()
    room.turn(31.0)
    (record,) = room.store.find("a")
    assert record.state.deleted_s is not None
    assert record.state.phase is JobPhase.SUCCEEDED
    assert room.store.records() == []
    assert [event.reason for event in room.store.events(record.state.uid)][-1] == "JobSucceeded"


def test_a_name_is_free_again_after_deletion(room: JobsRoom) -> None:
    room.submit("{name: a, run: x}")
    room.turn()
    with pytest.raises(JobExistsError):
        room.submit("{name: a, run: y}")
    room.store.ask(room.status("a").uid, "delete")
    room.turn()
    room.submit("{name: a, run: y}")
    assert len(room.store.find("a")) == 2


def test_nothing_is_created_when_one_of_several_names_is_taken(room: JobsRoom) -> None:
    room.submit("{name: a, run: x}")
    with pytest.raises(JobExistsError):
        room.submit("{name: b, run: x}\n---\n{name: a, run: x}")
    assert [record.state.spec.name for record in room.store.records()] == ["a"]


def test_a_job_that_never_fits_says_why(room: JobsRoom) -> None:
    room.submit("{name: a, run: x, roles: {worker: {devices: 1}}}")
    room.turn()
    assert "device" in room.status("a").waiting


def test_a_quota_holds_a_job_back(tmp_path: Path) -> None:
    room = JobsRoom(tmp_path / "jobs.sqlite", tenants=(TenantSpec("small", maximum={"cpus": 1.0}),))
    room.submit("{name: a, tenant: small, run: x}\n---\n{name: b, tenant: small, run: x}")
    room.turn()
    assert len(room.cluster.live) == 1
    assert "small" in room.status("b").waiting


def test_a_more_important_job_takes_the_place_and_the_other_comes_back(tmp_path: Path) -> None:
    room = JobsRoom(tmp_path / "jobs.sqlite", cpus=1)
    room.submit("{name: low, run: x}")
    room.turn()
    room.submit("{name: high, run: x, priority: 9}")
    room.turn(cycles=6)
    assert {run.uid for run in room.cluster.live} == {room.status("high").uid}
    assert room.status("low").phase is JobPhase.QUEUING
    room.cluster.end(room.cluster.find("Worker"), 0)
    room.turn(cycles=4)
    assert room.status("low").phase is JobPhase.RUNNING
    assert room.status("low").restarts == 0


def test_a_success_that_must_make_room_holds_nothing_afterwards(tmp_path: Path) -> None:
    room = JobsRoom(tmp_path / "jobs.sqlite", cpus=3)
    room.submit(TF.replace("run: x", "run: x, clean_up: none"))
    room.turn()
    room.cluster.end(room.cluster.find("Worker", 0), 0)
    room.turn()
    # The first evicts what the success left running, the second needs the whole room.
    for name, priority in (("high", 9), ("next", 0)):
        room.submit(f"{{name: {name}, run: x, priority: {priority}, roles: {{worker: {{replicas: 3}}}}}}")
        room.turn(cycles=6)
        assert {run.uid for run in room.cluster.live} == {room.status(name).uid}
        for run in list(room.cluster.live):
            room.cluster.end(run, 0)
        room.turn(cycles=4)
    assert room.status("t").phase is JobPhase.SUCCEEDED


def test_code_is_fetched_before_anything_starts(room: JobsRoom) -> None:
    room.submit("{name: a, run: x, working_dir: sub, code: {git: 'https://example.com/m.git', branch: dev}}")
    assert room.status("a").waiting == "The controller has not seen it yet."
    room.turn()
    assert room.status("a").waiting == "Its code is being fetched."
    (run,) = room.cluster.live.values()
    assert run.id.role == "code-sync"
    assert run.command[4:] == ("https://example.com/m.git", "m", "dev", "", "")
    room.cluster.end(run.id, 1)
    room.turn(2.0)
    room.cluster.end(room.cluster.find("code-sync"), 0)
    room.turn()
    (run,) = room.cluster.live.values()
    assert (run.id.role, run.working_dir) == ("Worker", "m/sub")


def test_code_that_cannot_be_fetched_fails_the_job(room: JobsRoom) -> None:
    room.submit("{name: a, run: x, code: {git: 'https://example.com/m.git', max_failures: 1}}")
    for _ in range(2):
        room.turn(2.0)
        room.cluster.end(room.cluster.find("code-sync"), 128)
    room.turn()
    assert room.status("a").conditions[-1].reason == "CodeSyncFailed"


def test_a_tensorboard_outlives_the_job_for_its_ttl(room: JobsRoom) -> None:
    room.submit("{name: a, run: x, tensorboard: {log_dir: logs, ttl: 100}}")
    room.turn()
    assert room.status("a").tensorboard_url.startswith("http://127.0.0.1:")
    room.cluster.end(room.cluster.find("Worker"), 0)
    room.turn()
    assert [run.role for run in room.cluster.live] == ["tensorboard"]
    assert not room.controller.is_idle
    room.turn(101.0)
    assert not room.cluster.live
    assert room.controller.is_idle


def test_a_success_leaves_a_model_version(room: JobsRoom) -> None:
    uid = room.submit("{name: a, run: x, model_version: {name: bert, path: /models/bert}}")[0]
    room.turn()
    assert room.cluster.live[room.cluster.find("Worker")].env["KUBEDL_MODEL_PATH"] == "/models/bert"
    room.cluster.end(room.cluster.find("Worker"), 0)
    room.turn()
    (version,) = room.store.model_versions()
    assert (version.name, version.model, version.path) == (f"mv-a-{uid[:5]}", "bert", "/models/bert")


def test_the_last_replicas_are_the_spot_ones(room: JobsRoom) -> None:
    room.submit("{name: a, run: x, roles: {worker: {replicas: 3, spot: 1}}}")
    room.turn()
    spots = [room.cluster.live[room.cluster.find("Worker", i)].env.get("MILLPOND_JOB_SPOT") for i in range(3)]
    assert spots == [None, None, "1"]


def test_devices_are_given_to_processes(tmp_path: Path) -> None:
    room = JobsRoom(tmp_path / "jobs.sqlite", devices=4)
    room.submit("{name: a, run: x, roles: {worker: {replicas: 2, devices: 2}}}")
    room.turn()
    seen = [room.cluster.live[room.cluster.find("Worker", i)].env["CUDA_VISIBLE_DEVICES"] for i in range(2)]
    assert sorted(",".join(seen).split(",")) == ["0", "1", "2", "3"]
    assert room.status("a").allocated_devices == 4


def test_an_aggregated_job_gets_ranks_along_the_wire(tmp_path: Path) -> None:
    room = JobsRoom(tmp_path / "jobs.sqlite", devices=4)
    room.submit("{name: a, framework: pytorch, aggregate: true, run: x, roles: {worker: {replicas: 4, devices: 1}}}")
    room.turn()
    env = [room.cluster.live[room.cluster.find("Worker", i)].env for i in range(4)]
    assert [e["RANK"] for e in env] == ["0", "1", "2", "3"]
    assert [e["LOCAL_RANK"] for e in env] == ["0", "1", "2", "3"]
    assert {e["LOCAL_WORLD_SIZE"] for e in env} == {"4"}
    assert len({e["CUDA_VISIBLE_DEVICES"] for e in env}) == 1


def test_xdl_tolerates_failed_workers_up_to_its_rate(room: JobsRoom) -> None:
    text = "{name: a, framework: xdl, run: x, options: {min_finish_work_rate: 50}, roles: {worker: {replicas: 3}}}"
    room.submit(text)
    room.turn()
    room.cluster.end(room.cluster.find("Worker", 0), 1)
    room.turn()
    assert room.status("a").phase is JobPhase.RUNNING
    room.cluster.end(room.cluster.find("Worker", 1), 1)
    room.turn()
    assert room.status("a").phase is JobPhase.FAILED


def test_a_role_with_a_minimum_starts_with_fewer_and_the_world_knows(tmp_path: Path) -> None:
    room = JobsRoom(tmp_path / "jobs.sqlite", cpus=3)
    room.submit("{name: a, framework: pytorch, run: x, roles: {worker: {replicas: 8, min_replicas: 2}}}")
    room.turn()
    assert len(room.cluster.live) == 3
    assert {run.env["WORLD_SIZE"] for run in room.cluster.live.values()} == {"3"}
    for run_id in list(room.cluster.live):
        room.cluster.end(run_id, 0)
    room.turn()
    assert room.status("a").phase is JobPhase.SUCCEEDED


def test_a_minimum_of_the_whole_job_is_taken_from_its_largest_role(tmp_path: Path) -> None:
    room = JobsRoom(tmp_path / "jobs.sqlite", cpus=4)
    room.submit("{name: a, framework: tf, min_available: 3, run: x, roles: {ps: {}, worker: {replicas: 5}}}")
    room.turn()
    assert sorted(run.role for run in room.cluster.live) == ["PS", "Worker", "Worker", "Worker"]


def test_the_decision_log_replays(room: JobsRoom) -> None:
    room.submit(TF)
    room.turn()
    room.cluster.end(room.cluster.find("Worker", 0), 0)
    room.turn()
    assert replay(room.log).decisions == 3


def test_a_deleted_waiting_job_leaves_the_queue(tmp_path: Path) -> None:
    room = JobsRoom(tmp_path / "jobs.sqlite", cpus=1)
    room.submit("{name: a, run: x}\n---\n{name: b, run: x}")
    room.turn()
    uid = room.status("b").uid
    room.store.ask(uid, "delete")
    room.turn()
    assert room.store.records()[0].state.spec.name == "a"
    assert room.store.find("b")[0].state.phase is JobPhase.FAILED


def test_every_replica_has_a_status(room: JobsRoom) -> None:
    room.submit(TF)
    room.turn()
    shown = [(r.name, r.phase, r.is_chief) for r in room.status("t").replicas]
    assert shown == [
        ("t-ps-0", ReplicaPhase.RUNNING, False),
        ("t-worker-0", ReplicaPhase.RUNNING, True),
        ("t-worker-1", ReplicaPhase.RUNNING, False),
    ]

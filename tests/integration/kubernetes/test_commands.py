"""`millpond jobs` and `millpond arena` against an API server with our operator."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import yaml
from kmock import Request

from millpond.cli.main import main
from tests.integration.kubernetes.api_server import make_node
from tests.integration.kubernetes.conftest import Room
from tests.integration.kubernetes.objects import kubedl_job

Run = Callable[..., Awaitable[str]]
SHORT = "{name: short, framework: pytorch, run: train, image: i, labels: {team: a}, roles: {master: {}, worker: {}}}"


@pytest.fixture
def kubeconfig(room: Room, tmp_path: Path) -> Path:
    path = tmp_path / "kubeconfig"
    document = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c",
        "clusters": [{"name": "c", "cluster": {"server": room.url}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
    }  # fmt: skip
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.fixture
def run(kubeconfig: Path, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in a thread, as the server lives in this one."""

    async def run_command(group: str, *arguments: str, code: int = 0) -> str:
        flag = "--kubeconfig" if group == "jobs" else "--config"
        capfd.readouterr()
        found = await asyncio.to_thread(main, [group, flag, str(kubeconfig), *arguments])
        said = capfd.readouterr()
        assert found == code, said
        return said.err if code else said.out

    return run_command


async def test_a_job_from_submit_to_deletion(room: Room, run: Run, tmp_path: Path) -> None:
    (tmp_path / "jobs.yaml").write_text(f"{SHORT}\n---\n{yaml.safe_dump(kubedl_job('TFJob', 'kubedl', {'Worker': 1}))}")
    await room.server.put(make_node("n1", cpus=16))
    await room.start()
    assert "short was submitted" in await run("jobs", "submit", str(tmp_path / "jobs.yaml"))
    body = room.server.find("millpondjobs", "short")
    assert body is not None
    assert body["metadata"]["labels"] == {"team": "a"}
    assert body["spec"]["roles"] == {"master": {}, "worker": {}}
    room.run_pods()
    await room.phase_is("millpondjobs", "short", "Running")
    await room.phase_is("tfjobs", "kubedl", "Running")
    lines = {line.split()[0]: line.split()[1:4] for line in (await run("jobs", "list")).splitlines()}
    assert lines["short"] == ["MillpondJob", "Running", "2/2"]
    assert lines["kubedl"] == ["TFJob", "Running", "1/1"]
    text = await run("jobs", "get", "short")
    assert "short-worker-0" in text
    assert "n1" in text
    assert "Reserved" in text
    document = json.loads(await run("arena", "get", "short", "-o", "json"))
    assert [instance["node"] for instance in document["instances"]] == ["n1", "n1"]
    assert (await run("arena", "list")).splitlines()[1].split()[1] == "RUNNING"
    assert "short was deleted." in await run("jobs", "delete", "short")
    assert room.server.find("millpondjobs", "short") is None
    assert "There is no job 'short'" in await run("jobs", "get", "short", code=1)


async def test_attach_enters_the_pod_by_kubectl(room: Room, run: Run, kubeconfig: Path, tmp_path: Path) -> None:
    (tmp_path / "jobs.yaml").write_text(SHORT)
    await room.server.put(make_node("n1", cpus=16))
    await room.start()
    await run("jobs", "submit", str(tmp_path / "jobs.yaml"))
    room.run_pods()
    await room.phase_is("millpondjobs", "short", "Running")
    line = [sys.executable, "-m", "millpond", "arena", "--config", str(kubeconfig), "attach", "short", "-i"]

    async def attach(path: Path, *arguments: str) -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            *line, *arguments, env=os.environ | {"PATH": str(path)}, stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        said, _ = await process.communicate()
        return process.returncode, said.decode()

    code, said = await attach(tmp_path / "empty", "short-worker-0")
    assert code == 2
    assert "kubectl" in said
    kubectl = tmp_path / "kubectl"
    kubectl.write_text('#!/bin/sh\necho "$@"\n')
    kubectl.chmod(0o755)
    at = f"--kubeconfig {kubeconfig} exec -i -n default short-worker-0"
    assert await attach(tmp_path, "short-worker-0") == (0, f"{at} -- /bin/sh\n")
    assert await attach(tmp_path, "short-worker-0", "-c", "side", "--", "ls", "-l") == (0, f"{at} -c side -- ls -l\n")
    code, said = await attach(tmp_path, "nobody")
    assert code == 1
    assert "nobody" in said


async def test_arenas_line_makes_an_object(room: Room, run: Run) -> None:
    await room.server.put(make_node("n1", cpus=2))
    await room.start()
    flags = ("--name=bert", "--workers=5", "--gpus=0", "--image=train:1", "--queue=team")
    assert "The Job bert has been submitted" in await run("arena", "submit", "pytorchjob", *flags, "python train.py")
    body = room.server.find("millpondjobs", "bert")
    assert body is not None
    assert body["spec"]["roles"]["worker"]["replicas"] == 4
    await room.phase_is("millpondjobs", "bert", "Queuing")
    await room.until(lambda: (room.server.find("millpondjobs", "bert") or {}).get("status", {}).get("explanation"))
    assert "cpus" in (await run("jobs", "explain", "bert")).casefold()
    assert "bert" in await run("jobs", "queue")
    assert "PENDING" in await run("arena", "list")


async def test_what_is_wrong_creates_nothing(room: Room, run: Run, tmp_path: Path) -> None:
    bad = "{name: bad, image: i, run: x, roles: {worker: {replica: 1}}}"
    (tmp_path / "jobs.yaml").write_text(f"{SHORT}\n---\n{bad}")
    assert "Did you mean 'replicas'?" in await run("jobs", "submit", str(tmp_path / "jobs.yaml"), code=1)
    (tmp_path / "jobs.yaml").write_text("{apiVersion: v1, kind: Pod, metadata: {name: x}}")
    assert "knows no such kind" in await run("jobs", "submit", str(tmp_path / "jobs.yaml"), code=1)
    (tmp_path / "jobs.yaml").write_text("{name: bare, run: x}")
    assert "image" in await run("jobs", "submit", str(tmp_path / "jobs.yaml"), code=1)
    assert room.server.all("millpondjobs") == []


async def test_logs_come_from_the_pod(room: Room, run: Run, tmp_path: Path) -> None:
    def log(request: Request) -> bytes:
        return f"{request.params.get('container')} {request.params.get('tailLines')}\n".encode()

    room.server["get", "/api/v1/namespaces/default/pods/short-worker-0/log"] << log
    await room.server.put(make_node("n1", cpus=16))
    await room.start()
    room.run_pods()
    (tmp_path / "job.yaml").write_text(SHORT)
    await run("jobs", "submit", str(tmp_path / "job.yaml"))
    await room.phase_is("millpondjobs", "short", "Running")
    assert (await run("jobs", "logs", "short", "-i", "short-worker-0", "-t", "3")).endswith(" 3\n")
    assert "no instance 'short-worker-9'" in await run("jobs", "logs", "short", "-i", "short-worker-9", code=1)


async def test_what_is_local_alone_says_so(run: Run) -> None:
    assert "local cluster alone" in await run("jobs", "versions", code=2)
    assert "There is no job 'any'" in await run("arena", "attach", "any", code=1)
    assert "Cluster:   kubernetes" in await run("arena", "whoami")


async def test_nodes_and_what_jobs_hold_of_them(room: Room, run: Run, tmp_path: Path) -> None:
    roles = "{worker: {replicas: 2, cpus: 2, devices: 1}}"
    (tmp_path / "job.yaml").write_text(f"{{name: two, run: train, image: i, roles: {roles}}}")
    await room.server.put(make_node("n1", cpus=16, devices=4))
    await room.server.put(make_node("n2", cpus=8, unschedulable=True))
    await room.start()
    await run("jobs", "submit", str(tmp_path / "job.yaml"))
    room.run_pods()
    await room.phase_is("millpondjobs", "two", "Running")
    nodes = {node["name"]: node for node in json.loads(await run("arena", "top", "node", "-o", "json"))}
    assert nodes["n1"] | {"address": ""} == {
        "name": "n1", "address": "", "cpus": 16.0, "memory_bytes": 64 << 30, "devices": 4, "device_type": "",
        "used_cpus": 4.0, "used_memory_bytes": 0, "used_devices": 2,
        "instances": ["two-worker-0", "two-worker-1"], "is_up": True,
    }  # fmt: skip
    assert (nodes["n2"]["is_up"], nodes["n2"]["instances"]) == (False, [])
    assert "n1" in await run("arena", "top", "node")


async def test_a_cron_is_suspended_and_resumed(room: Room, run: Run) -> None:
    made = kubedl_job("PyTorchJob", "unused", {"Master": 1})
    template = {"apiVersion": made["apiVersion"], "kind": "PyTorchJob", "workload": {"spec": made["spec"]}}
    metadata, spec = {"name": "nightly", "namespace": "default"}, {"schedule": "0 3 1 1 *", "template": template}
    await room.server.put(
        {"apiVersion": "apps.kubedl.io/v1alpha1", "kind": "Cron", "metadata": metadata, "spec": spec}
    )
    await room.server.put(make_node("n1"))
    await room.start()
    assert (await run("arena", "cron", "list")).splitlines()[1].split()[0] == "nightly"
    assert "suspended" in await run("arena", "cron", "suspend", "nightly")
    assert "Suspend:     True" in await run("arena", "cron", "get", "nightly")
    assert "resumed" in await run("arena", "cron", "resume", "nightly")
    assert "Suspend:     False" in await run("arena", "cron", "get", "nightly")
    assert "deleted" in await run("arena", "cron", "delete", "nightly")
    assert room.server.find("crons", "nightly") is None


async def test_a_job_is_scaled_out_and_in(room: Room, run: Run) -> None:
    await room.server.put(make_node("n1", cpus=16))
    await room.start()
    room.run_pods()
    await run("arena", "submit", "pytorchjob", "--name=bert", "--workers=2", "--image=train:1", "python train.py")
    await room.phase_is("millpondjobs", "bert", "Running")
    said = await run("arena", "scaleout", "pytorchjob", "--name=bert", "--count=2", "-t", "600")
    assert said.splitlines() == ["Worker of bert: 1 -> 3", "The Job bert has been scaled successfully"]
    assert len(room.pods()) == 4
    said = await run("arena", "scalein", "pytorchjob", "--name=bert", "--count=1", "-t", "600")
    assert "Worker of bert: 3 -> 2" in said
    assert "starts again with 1 replicas of Worker" in await run("jobs", "scale", "bert", "1", "--timeout", "600")
    assert set(room.pods()) == {"bert-master-0", "bert-worker-0"}
    assert "Resized" in await run("arena", "get", "bert", "-e")
    assert "no role 'master' that can be scaled" in await run("jobs", "scale", "bert", "2", "-r", "master", code=1)
    assert "can have 1 to" in await run("arena", "scalein", "pytorchjob", "--name=bert", code=1)
    assert "There is no job 'bart'" in await run("jobs", "scale", "bart", "2", code=1)
    body = room.server.find("millpondjobs", "bert")
    assert body is not None
    assert body["spec"]["roles"]["worker"]["replicas"] == 1


async def test_a_size_that_does_not_fit_is_told(room: Room, run: Run) -> None:
    await room.server.put(make_node("n1", cpus=3))
    await room.start()
    room.run_pods()
    await run("arena", "submit", "pytorchjob", "--name=bert", "--workers=2", "--image=train:1", "python train.py")
    await room.phase_is("millpondjobs", "bert", "Running")
    said = await run("arena", "scaleout", "pytorchjob", "--name=bert", "--count=5", "-t", "1", code=1)
    assert "bert does not run with them yet." in said

    def waiting() -> str:
        return str((room.server.find("millpondjobs", "bert") or {})["status"].get("waiting"))

    await room.until(lambda: "even with every other job gone this cluster and quota cannot hold it" in waiting())
    assert "Role Worker needs 6 x 1 CPUs; room for 3." in waiting()
    assert "scaled successfully" in await run("arena", "scalein", "pytorchjob", "--name=bert", "--count=5", "-t", "600")


async def test_arenas_cron_makes_a_cron_object_that_makes_jobs(room: Room, run: Run) -> None:
    await room.server.put(make_node("n1", cpus=16))
    await room.start()
    flags = ("--schedule=0 3 1 1 *", "--concurrency-policy=Forbid", "--history-limit=2", "--image=train:1")
    said = await run("arena", "cron", "pytorchjob", "--name=nightly", "--workers=2", *flags, "-l", "team=a", "train")
    assert said.splitlines() == [
        "cron/nightly created", "The Cron nightly has been submitted successfully",
        "You can run `millpond arena cron get nightly` to check the job status",
    ]  # fmt: skip
    await run("arena", "cron", "tfjob", "--name=weekly", "--workers=1", *flags, "train")
    body = room.server.find("crons", "nightly")
    assert body is not None
    assert body["apiVersion"] == "apps.kubedl.io/v1alpha1"
    assert {key: body["spec"][key] for key in ("schedule", "concurrencyPolicy", "historyLimit", "suspend")} == {
        "schedule": "0 3 1 1 *", "concurrencyPolicy": "Forbid", "historyLimit": 2, "suspend": False,
    }  # fmt: skip
    assert room.server.all("millpondjobs") == []
    rows = {line.split()[0]: line.split()[1] for line in (await run("arena", "cron", "list")).splitlines()[1:]}
    assert rows == {"nightly": "pytorch", "weekly": "tf"}
    await room.settled()
    assert room.operator is not None
    (state,) = [one for one in room.operator.controller.jobs.values() if one.spec.name == "nightly"]
    assert state.cron is not None
    state.cron.last_s = 0.0  # long ago: a run is due
    room.operator.cluster.changed.set()
    made = await room.until(lambda: room.server.all("millpondjobs"))
    assert made[0]["metadata"]["labels"] == {"team": "a", "kubedl.io/cron-name": "nightly"}
    room.run_pods()
    await room.phase_is("millpondjobs", made[0]["metadata"]["name"], "Running")
    assert set(room.pods()) == {f"{made[0]['metadata']['name']}-{role}-0" for role in ("master", "worker")}
    assert made[0]["metadata"]["name"] in await run("arena", "cron", "get", "nightly")


async def test_a_cron_with_a_wrong_job_is_refused_whole(run: Run, room: Room, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("{name: c, image: i, run: x, cron: {schedule: '61 * * * *'}}")
    assert "spec.schedule" in await run("jobs", "submit", str(tmp_path / "a.yaml"), code=1)
    (tmp_path / "a.yaml").write_text("{name: c, image: i, run: x, cron: {shedule: '1 * * * *'}}")
    assert "Did you mean 'schedule'?" in await run("jobs", "submit", str(tmp_path / "a.yaml"), code=1)
    (tmp_path / "a.yaml").write_text("{name: c, run: x, cron: {schedule: '1 * * * *'}}")
    said = await run("jobs", "submit", str(tmp_path / "a.yaml"), code=1)
    assert "spec.template.workload.spec.roles.worker.image" in said
    assert room.server.all("crons") == []


async def test_arenas_flags_about_pods_reach_the_pods(room: Room, run: Run) -> None:
    await room.server.put(make_node("n1", cpus=16))
    await room.start()
    flags = (
        "--data=train-data:/mnt/data,models:/models", "--data-subpath-expr=models:v1", "--data-dir=/scratch",
        "--temp-dir=tmp:/tmp/work", "--share-memory=2Gi", "--toleration=gpu=yes:NoSchedule", "--toleration=all",
        "--image-pull-secret=registry", "--image-pull-policy=Always", "--env-from-secret=keys", "--rdma",
    )  # fmt: skip
    await run("arena", "submit", "pytorchjob", "--name=bert", "--workers=2", "--image=t:1", *flags, "python train.py")
    pod = (await room.until(room.pods))["bert-master-0"]["spec"]
    sources = [{key: value for key, value in volume.items() if key != "name"} for volume in pod["volumes"]]
    assert sources == [
        {"persistentVolumeClaim": {"claimName": "train-data"}},
        {"persistentVolumeClaim": {"claimName": "models"}},
        {"hostPath": {"path": "/scratch"}},
        {"emptyDir": {}},
        {"emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}},
    ]
    (container,) = pod["containers"]
    mounts = {mount["mountPath"]: mount.get("subPathExpr") for mount in container["volumeMounts"]}
    assert mounts == {"/mnt/data": None, "/models": "v1", "/scratch": None, "/tmp/work": None, "/dev/shm": None}
    assert pod["tolerations"] == [
        {"key": "gpu", "operator": "Equal", "value": "yes", "effect": "NoSchedule"}, {"operator": "Exists"},
    ]  # fmt: skip
    assert pod["imagePullSecrets"] == [{"name": "registry"}]
    assert (container["imagePullPolicy"], container["image"]) == ("Always", "t:1")
    assert container["envFrom"] == [{"secretRef": {"name": "keys"}}]
    assert container["resources"]["limits"]["rdma/hca"] == "1"
    assert container["command"] == ["/bin/sh", "-c", "python train.py"]


async def test_a_wrong_flag_about_pods_creates_nothing(room: Room, run: Run) -> None:
    await room.start()
    line = ("arena", "submit", "pytorchjob", "--name=bert", "--image=t:1")
    assert "'pvc' is not NAME:PATH" in await run(*line, "--data=pvc", "train", code=2)
    assert "is no absolute path" in await run(*line, "--data=pvc:mnt", "train", code=2)
    assert "no --data is called 'x'" in await run(*line, "--data-subpath-expr=x:v1", "train", code=2)
    assert "imagePullPolicy" not in await run(*line, "--image-pull-policy=Sometimes", "train", code=2)
    assert room.server.all("millpondjobs") == []


async def test_datasets_are_the_clusters_volume_claims(room: Room, run: Run) -> None:
    noted = {"description": "images", "owner": "vision"}
    for name, said in (("train", noted), ("scratch", {})):
        metadata = {"name": name, "namespace": "default", "annotations": said}
        spec = {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}
        claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": spec}
        await room.server.put(claim)
    lines = [line.split() for line in (await run("arena", "data", "list")).splitlines()]
    assert lines[0] == ["NAME", "ACCESSMODE", "DESCRIPTION", "OWNER", "AGE"]
    assert [line[0] for line in lines[1:]] == ["scratch", "train"]
    assert lines[2][1:4] == ["ReadWriteMany", "images", "vision"]

"""Specifications that cannot be: one error with the field's path, and nothing created."""

from __future__ import annotations

from typing import Any

import pytest

from tests.integration.kubernetes.api_server import Object, make_node
from tests.integration.kubernetes.conftest import Room
from tests.integration.kubernetes.objects import kubedl_job, millpond_job, template

MASTER = "spec.pytorchReplicaSpecs.Master"


def _typo(path: str, value: Any) -> Object:
    job = kubedl_job("PyTorchJob", "bad", {"Master": 1})
    at = job
    *way, last = path.split(".")
    for step in way:
        at = at[int(step)] if isinstance(at, list) else at.setdefault(step, {})
    at[last] = value
    return job


BAD: list[tuple[Object, str]] = [
    (_typo("spec.cleanPodPolicies", "All"), "spec.cleanPodPolicies"),
    (_typo("spec.pytorchReplicaSpecs.Master.replica", 2), f"{MASTER}.replica"),
    (_typo("spec.pytorchReplicaSpecs.Master.template.spec.volume", []), f"{MASTER}.template.spec.volume"),
    (_typo("spec.pytorchReplicaSpecs.Boss", {"template": template("pytorch")}), "spec.pytorchReplicaSpecs.Boss"),
    (_typo("spec.cronPolicy", {"schedule": "61 * * * *"}), "spec.cronPolicy.schedule"),
    (kubedl_job("PyTorchJob", "1bad", {"Master": 1}), "metadata.name"),
    (millpond_job("bad", roles={"worker": {"image": "a", "run": "b", "replica": 3}}), "spec.roles.worker.replica"),
    (millpond_job("bad", roles={"worker": {"run": "b"}}), "spec.roles.worker.image"),
    (millpond_job("bad", framework="pytroch", roles={}), "spec.framework"),
    (millpond_job("bad", framework="tf", roles={"ps": {"image": "a", "run": "b", "after": "worker"},
                                                "worker": {"image": "a", "run": "b"}}), "spec.roles.ps"),
]  # fmt: skip


@pytest.mark.parametrize(("job", "path"), BAD, ids=[path for _, path in BAD])
async def test_bad_specification_is_refused_with_its_path(room: Room, job: Object, path: str) -> None:
    plural, name = f"{job['kind'].lower()}s", job["metadata"]["name"]
    await room.server.put(make_node("n1"))
    await room.start()
    await room.server.put(job)
    await room.phase_is(plural, name, "Failed")
    (condition,) = room.server.find(plural, name)["status"]["conditions"]
    assert condition["reason"] == "InvalidSpec"
    assert condition["message"].startswith(f"{path}: ")
    assert room.server.find(plural, name)["status"]["field"] == path
    await room.settled()
    assert not [kind for kind in ("pods", "services", "configmaps", "reservations") if room.server.all(kind)]


async def test_template_that_the_api_server_would_refuse_is_found_before_anything_exists(room: Room) -> None:
    broken = template("pytorch", imagePullPolicy={"not": "a text"})
    await room.server.put(make_node("n1"))
    await room.start()
    await room.server.put(kubedl_job("PyTorchJob", "bad", {"Master": 1, "Worker": {"template": broken}}))
    await room.phase_is("pytorchjobs", "bad", "Failed")
    (condition,) = room.server.find("pytorchjobs", "bad")["status"]["conditions"]
    assert condition["message"].startswith("spec.pytorchReplicaSpecs.Worker.template: spec.containers.0")
    assert not room.server.all("pods")


async def test_job_that_fits_nowhere_says_why_it_waits(room: Room) -> None:
    await room.server.put(make_node("n1", cpus=2))
    await room.start()
    await room.server.put(kubedl_job("PyTorchJob", "big", {"Master": {"template": template("pytorch", cpu="4")}}))
    await room.until(lambda: room.server.find("pytorchjobs", "big").get("status", {}).get("waiting"))
    status = room.server.find("pytorchjobs", "big")["status"]
    assert status["phase"] == "Queuing"
    assert status["explanation"]["shortages"]
    assert not room.pods()


async def test_job_that_ended_under_another_operator_is_left_alone(room: Room) -> None:
    await room.server.put(make_node("n1"))
    await room.server.put(kubedl_job("PyTorchJob", "old", {"Master": 1}))
    old = [{"type": "Succeeded", "status": "True", "reason": "JobSucceeded"}]
    await room.server.change("pytorchjobs", "old", {"status": {"conditions": old}})
    await room.start()
    await room.until(lambda: room.operator.turns)
    await room.settled()
    assert not room.pods()
    assert room.server.find("pytorchjobs", "old")["status"] == {"conditions": old}

"""Another number of replicas for a job that lives: the object says it, the whole gang starts again with it."""

from __future__ import annotations

import pytest

from millpond.jobs.clusters.kubernetes.kinds import ResourceKind
from millpond.jobs.clusters.kubernetes.operator import OperatorSettings
from millpond.jobs.scheduling.types import TenantSpec
from tests.integration.kubernetes.api_server import make_node
from tests.integration.kubernetes.conftest import Room
from tests.integration.kubernetes.objects import Object, kubedl_job, millpond_job, template


def sizes(room: Room, variable: str = "WORLD_SIZE") -> dict[str, str]:
    """How many each pod believes there are."""
    found = {}
    for name, pod in room.pods().items():
        env = {item["name"]: item.get("value", "") for item in pod["spec"]["containers"][0]["env"]}
        found[name] = env[variable]
    return found


def pods_of(name: str, workers: int) -> set[str]:
    return {f"{name}-master-0", *(f"{name}-worker-{index}" for index in range(workers))}


def workers(count: int) -> Object:
    return {"spec": {"pytorchReplicaSpecs": {"Worker": {"replicas": count}}}}


def warnings(room: Room) -> list[str]:
    return [event["message"] for event in room.server.all("events") if event["reason"] == "NotChanged"]


async def running(room: Room, job: Object, count: int) -> None:
    """A cluster of two machines on which the job runs."""
    for name in ("n1", "n2"):
        await room.server.put(make_node(name, cpus=8, devices=2))
    room.run_pods()
    await room.server.put(job)
    name = job["metadata"]["name"]
    await room.until(lambda: set(room.pods()) == pods_of(name, count))
    await room.phase_is("pytorchjobs", name, "Running")


async def test_a_gang_starts_again_whole_in_its_new_size(room: Room) -> None:
    await room.start()
    await running(room, kubedl_job("PyTorchJob", "et", {"Master": 1, "Worker": 1}), 1)
    for count in (3, 1):
        await room.server.change("pytorchjobs", "et", workers(count))
        await room.until(lambda n=count: set(sizes(room).values()) == {str(n + 1)} and len(room.pods()) == n + 1)
        await room.phase_is("pytorchjobs", "et", "Running")
        assert set(room.pods()) == pods_of("et", count)
        await room.until(lambda n=count: statuses(room, "et")["Worker"]["active"] == n)
        (record,) = room.server.all("reservations")
        assert len([one for one in record["spec"]["placements"] if one["role"] == "Worker"]) == count
    assert not warnings(room)


def statuses(room: Room, name: str) -> Object:
    found = room.server.find("pytorchjobs", name)
    assert found is not None
    statuses: Object = found["status"]["replicaStatuses"]
    return statuses


async def test_a_size_beyond_the_quota_waits_and_says_so(room: Room) -> None:
    tenants = (TenantSpec("default", maximum={"devices": 3.0}),)
    await room.start(OperatorSettings(tenants=tenants))
    roles = {role: {"replicas": 1, "template": template("pytorch", devices=1)} for role in ("Master", "Worker")}
    await running(room, kubedl_job("PyTorchJob", "et", roles), 1)
    await room.server.change("pytorchjobs", "et", workers(3))
    await room.until(lambda: not room.pods(), "the old gang leaves")
    await room.phase_is("pytorchjobs", "et", "Queuing")
    await room.until(lambda: "Tenant default holds 0 of 3 devices" in waiting(room, "et"), "it says why")
    assert not room.pods(), "no part of the gang starts"
    await room.server.change("pytorchjobs", "et", workers(2))
    await room.phase_is("pytorchjobs", "et", "Running")
    assert set(sizes(room).values()) == {"3"}


def waiting(room: Room, name: str) -> str:
    found = room.server.find("pytorchjobs", name)
    return "" if found is None else str(found["status"].get("waiting"))


async def test_a_size_that_changed_while_no_operator_ran_is_taken_up(room: Room) -> None:
    await room.start()
    await running(room, kubedl_job("PyTorchJob", "et", {"Master": 1, "Worker": 1}), 1)
    await room.stop()
    await room.server.change("pytorchjobs", "et", workers(2))
    await room.start(identity="two")
    await room.until(lambda: sizes(room) == dict.fromkeys(pods_of("et", 2), "3"))
    await room.phase_is("pytorchjobs", "et", "Running")
    await room.stop()
    await room.start(identity="three")
    await room.settled()
    assert sizes(room) == dict.fromkeys(pods_of("et", 2), "3"), "a restart alone changes nothing"
    assert not warnings(room)


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        ({"Master": {"replicas": 2}}, "Master"),
        ({"Worker": {"replicas": 0}}, "can have 1 to 100000 replicas, not 0"),
        ({"Worker": {"restartPolicy": "Always"}}, "only replicas of roles can change"),
    ],
)
async def test_what_cannot_change_stops_nothing_and_is_told(room: Room, patch: Object, said: str) -> None:
    await room.start()
    await running(room, kubedl_job("PyTorchJob", "et", {"Master": 1, "Worker": 1}), 1)
    before = {name: pod["metadata"]["uid"] for name, pod in room.pods().items()}
    await room.server.change("pytorchjobs", "et", {"spec": {"pytorchReplicaSpecs": patch}})
    await room.until(lambda: warnings(room))
    assert said in warnings(room)[0]
    await room.settled()
    assert {name: pod["metadata"]["uid"] for name, pod in room.pods().items()} == before
    assert room.phase("pytorchjobs", "et") == "Running"


async def running_gang(room: Room, scheduler: str) -> Object:
    """A job of two workers that another scheduler placed; returns its gang's object."""
    await room.start(OperatorSettings(gang_scheduler=scheduler))
    await room.server.put(millpond_job("et", run="train", image="i", roles={"worker": {"replicas": 2}}))
    await room.until(lambda: len(room.pods()) == 2)
    for name in room.pods():
        await room.server.set_pod(name, "Running")
    await room.phase_is("millpondjobs", "et", "Running")
    room.run_pods()
    (group,) = room.server.all("podgroups")
    return group


async def grow_gang(room: Room) -> None:
    """Makes the job's two workers four, and sees that the gang's object says so."""
    await room.server.change("millpondjobs", "et", {"spec": {"roles": {"worker": {"replicas": 4}}}})
    await room.until(lambda: len(room.pods()) == 4)
    assert [group["spec"]["minMember"] for group in room.server.all("podgroups")] == [4]


@pytest.mark.parametrize("scheduler", ["volcano", "coscheduling"])
async def test_the_gang_of_another_scheduler_gets_the_new_size(room: Room, scheduler: str) -> None:
    await running_gang(room, scheduler)
    await grow_gang(room)


async def test_two_starts_that_exchange_the_same_gang_leave_one(room: Room, monkeypatch: pytest.MonkeyPatch) -> None:
    old = (await running_gang(room, "volcano"))["metadata"]["uid"]
    get, looks = room.api.get, 0

    async def look(kind: ResourceKind, namespace: str, name: str) -> Object | None:
        nonlocal looks
        if kind.plural == "podgroups":
            looks += 1
            if looks == 1:  # both find the name taken
                await room.until(lambda: looks >= 2)
            elif looks == 2:  # and one looks when the other has taken the old one away
                await room.until(lambda: all(group["metadata"]["uid"] != old for group in room.server.all("podgroups")))
        return await get(kind, namespace, name)

    monkeypatch.setattr(room.api, "get", look)
    await grow_gang(room)


async def test_mpis_launcher_may_reach_the_workers_that_came(room: Room) -> None:
    await room.start()
    await room.server.put(make_node("n1", cpus=16))
    room.run_pods()
    await room.server.put(kubedl_job("MPIJob", "mpi", {"Launcher": 1, "Worker": 1}))
    await room.phase_is("mpijobs", "mpi", "Running")
    await room.server.change("mpijobs", "mpi", {"spec": {"mpiReplicaSpecs": {"Worker": {"replicas": 3}}}})
    await room.until(lambda: len(room.pods()) == 4)
    (role,) = room.server.all("roles")
    assert role["rules"][1]["resourceNames"] == ["mpi-worker-0", "mpi-worker-1", "mpi-worker-2"]
    (files,) = room.server.all("configmaps")
    assert files["data"]["hostfile"].split()[::2] == ["mpi-worker-0", "mpi-worker-1", "mpi-worker-2"]

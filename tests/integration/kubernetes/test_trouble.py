"""What a cluster does to an operator: gaps, conflicts, throttling, expired watches, restarts, lost machines, rivals."""

from __future__ import annotations

import asyncio
from collections import Counter

import kmock
import pytest

from millpond.jobs.clusters.kubernetes.leader import Leader, LeaseSettings
from millpond.jobs.clusters.kubernetes.operator import OperatorSettings
from millpond.jobs.clusters.kubernetes.writer import LeadershipLostError
from tests.integration.kubernetes.api_server import make_node
from tests.integration.kubernetes.conftest import Room
from tests.integration.kubernetes.objects import kubedl_job

PODS = kmock.resource("v1/pods")
RESERVATIONS = kmock.resource("jobs.millpond.io/v1alpha1/reservations")


async def _running(room: Room, name: str = "j", **spec: object) -> None:
    await room.server.put(make_node("n1"))
    await room.start()
    room.run_pods()
    await room.server.put(kubedl_job("PyTorchJob", name, {"Master": 1, "Worker": 1}, **spec))
    await room.phase_is("pytorchjobs", name, "Running")
    await room.until(lambda: all(pod["status"]["phase"] == "Running" for pod in room.pods().values()))
    await room.until(lambda: len(room.pods()) == 2)


def _created(room: Room) -> Counter[tuple[str, str]]:
    """How often each attempt of each pod was created."""
    return Counter(
        (body["metadata"]["name"], body["metadata"]["labels"]["jobs.millpond.io/attempt"])
        for _, key, event, body in room.server.history
        if key == "v1/pods" and event == "ADDED"
    )


async def test_throttled_requests_are_sent_again(room: Room) -> None:
    await room.server.put(make_node("n1"))
    room.server["post", PODS][:4] << 429 << kmock.headers({"Retry-After": "0"})
    await room.start()
    room.run_pods()
    await room.server.put(kubedl_job("PyTorchJob", "j", {"Master": 1}))
    await room.phase_is("pytorchjobs", "j", "Running")
    assert len(room.server["post", PODS]) == 6  # four refusals, a dry run, a pod


async def test_server_that_fails_for_long_delays_and_loses_nothing(room: Room) -> None:
    await room.server.put(make_node("n1"))
    room.server["post", RESERVATIONS][:9] << 503
    await room.start()
    room.run_pods()
    await room.server.put(kubedl_job("PyTorchJob", "j", {"Master": 1}))
    await room.phase_is("pytorchjobs", "j", "Running")
    first_pod = next(version for version, key, event, _ in room.server.history if key == "v1/pods" and event == "ADDED")
    record = next(version for version, key, _, _ in room.server.history if key.endswith("/reservations"))
    assert record < first_pod  # nothing starts before it is written down
    assert set(_created(room).values()) == {1}


async def test_conflict_on_a_record_is_settled_when_only_its_labels_changed(room: Room) -> None:
    await _running(room)
    await room.server.change("reservations", "pytorchjob.j", {"metadata": {"labels": {"seen": "yes"}}})
    await room.server.set_pod("j-master-0", "Succeeded", 0)
    await room.phase_is("pytorchjobs", "j", "Succeeded")
    await room.until(lambda: not room.pods()["j-master-0"]["metadata"].get("finalizers"))


async def test_operator_stops_when_another_one_writes(room: Room) -> None:
    await _running(room)
    found = room.server.find("reservations", "pytorchjob.j")
    await room.server.change("reservations", "pytorchjob.j", {"spec": found["spec"] | {"leader": "two", "epoch": 9}})
    created = _created(room)
    await room.server.set_pod("j-worker-0", "Failed", 1)
    with pytest.raises(LeadershipLostError):
        await room.until(lambda: False)
    assert _created(room) == created


async def test_streams_that_end_are_taken_up_where_they_ended(room: Room) -> None:
    await _running(room)
    await room.server.end_watches()
    await room.server.set_pod("j-master-0", "Succeeded", 0)
    await room.phase_is("pytorchjobs", "j", "Succeeded")
    lists = len(room.server["list", PODS])
    assert lists == 1


async def test_expired_watch_lists_again(room: Room) -> None:
    await _running(room)
    await room.server.set_pod("j-master-0", "Succeeded", 0)
    await room.server.compact()
    await room.phase_is("pytorchjobs", "j", "Succeeded")
    assert len(room.server["list", PODS]) >= 2


async def test_deletion_that_fell_into_a_gap_is_found(room: Room) -> None:
    await _running(room)
    room.server.is_deaf = True  # streams are open and say nothing
    await room.server.remove("pytorchjobs", "j")
    await asyncio.sleep(0.1)
    room.server.is_deaf = False
    await room.server.compact()
    await room.until(lambda: not room.pods() and not room.server.all("reservations"))


async def test_deleted_job_is_stopped_and_forgotten(room: Room) -> None:
    await _running(room)
    await room.server.remove("pytorchjobs", "j")
    await room.until(lambda: not room.pods() and not room.server.all("reservations"))
    await room.until(lambda: not room.operator.controller.jobs)
    await room.server.put(kubedl_job("PyTorchJob", "j", {"Master": 1}))
    await room.phase_is("pytorchjobs", "j", "Running")


async def test_retryable_exit_starts_a_new_attempt_under_the_same_name(room: Room) -> None:
    await _running(room)
    await room.server.set_pod("j-master-0", "Failed", 137, "OOMKilled")
    await room.until(lambda: ("j-master-0", "2") in _created(room))
    await room.phase_is("pytorchjobs", "j", "Running")
    assert room.server.find("pytorchjobs", "j")["status"]["restarts"] == 1
    assert set(_created(room).values()) == {1}


async def test_permanent_exit_fails_the_job(room: Room) -> None:
    await _running(room, cleanPodPolicy="Running")
    await room.server.set_pod("j-master-0", "Failed", 1)
    await room.phase_is("pytorchjobs", "j", "Failed")
    await room.until(lambda: set(room.pods()) == {"j-master-0"})  # what ran is gone, what ended stays for its logs


async def test_ttl_deletes_the_job_and_all_of_it(room: Room) -> None:
    await _running(room, ttlSecondsAfterFinished=0)
    await room.server.set_pod("j-master-0", "Succeeded", 0)
    await room.until(lambda: room.server.find("pytorchjobs", "j") is None)
    await room.until(lambda: not room.pods() and not room.server.all("services"))
    await room.until(lambda: not room.server.all("reservations"))


@pytest.mark.parametrize("moment", ["at once", "reserved", "running", "ended unseen", "deleted unseen"])
async def test_restart_goes_on_and_starts_nothing_twice(room: Room, moment: str) -> None:
    await room.server.put(make_node("n1"))
    await room.start()
    if moment not in ("at once", "reserved"):
        room.run_pods()
    await room.server.put(kubedl_job("PyTorchJob", "j", {"Master": 1, "Worker": 1}))
    if moment == "reserved":
        await room.until(lambda: room.server.all("reservations"))
    elif moment != "at once":
        await room.phase_is("pytorchjobs", "j", "Running")
        await room.until(lambda: len(room.pods()) == 2)
    await room.stop()
    if moment in ("ended unseen", "deleted unseen"):
        await room.server.set_pod("j-master-0", "Succeeded", 0)
    if moment == "deleted unseen":
        await room.server.remove("pods", "j-master-0")
    if moment in ("at once", "reserved"):
        room.run_pods()
    await room.start(identity="two")
    if moment in ("at once", "reserved", "running"):
        await room.phase_is("pytorchjobs", "j", "Running")
        await room.until(lambda: len(room.pods()) == 2)
        await room.until(lambda: room.pods()["j-master-0"]["status"]["phase"] == "Running")
        await room.server.set_pod("j-master-0", "Succeeded", 0)
    await room.phase_is("pytorchjobs", "j", "Succeeded")
    assert set(_created(room)) >= {("j-master-0", "1")}
    assert set(_created(room).values()) == {1}


async def test_job_deleted_while_no_operator_ran_is_stopped(room: Room) -> None:
    await _running(room)
    await room.stop()
    await room.server.remove("pytorchjobs", "j")
    await room.start(identity="two")
    await room.until(lambda: not room.pods() and not room.server.all("reservations"))


async def test_lost_machine_sends_the_whole_gang_elsewhere(room: Room) -> None:
    await room.server.put(make_node("n1"))
    await room.start(OperatorSettings(node_lost_s=0.0))
    room.run_pods()
    await room.server.put(kubedl_job("PyTorchJob", "j", {"Master": 1, "Worker": 1}))
    await room.phase_is("pytorchjobs", "j", "Running")
    await room.until(lambda: len(room.pods()) == 2)
    await room.server.put(make_node("n2"))
    silent = [{"type": "Ready", "status": "Unknown", "lastTransitionTime": "2026-01-01T00:00:00Z"}]
    await room.server.change("nodes", "n1", {"status": {"conditions": silent}}, namespace="")
    await room.until(lambda: [pod["spec"]["nodeName"] for pod in room.pods().values()] == ["n2", "n2"])
    await room.phase_is("pytorchjobs", "j", "Running")


async def test_cordoned_machine_gets_nothing_new(room: Room) -> None:
    await room.server.put(make_node("n1", unschedulable=True))
    await room.start()
    await room.server.put(kubedl_job("PyTorchJob", "j", {"Master": 1}))
    await room.phase_is("pytorchjobs", "j", "Queuing")
    await room.settled()
    assert not room.pods()
    await room.server.change("nodes", "n1", {"spec": {"unschedulable": None}}, namespace="")
    await room.until(room.pods)


async def test_two_jobs_never_hold_half_a_cluster_each(room: Room) -> None:
    await room.server.put(make_node("n1", cpus=3))
    await room.start()
    room.run_pods()
    for name in ("a", "b"):
        await room.server.put(kubedl_job("TFJob", name, {"PS": 1, "Worker": 1}))
    await room.until(lambda: len(room.pods()) == 2)
    await room.settled()
    (first,) = {name[0] for name in room.pods()}
    await room.until(lambda: room.pods()[f"{first}-worker-0"]["status"]["phase"] == "Running")
    await room.server.set_pod(f"{first}-worker-0", "Succeeded", 0)
    other = "b" if first == "a" else "a"
    await room.phase_is("tfjobs", other, "Running")


async def test_pod_name_taken_by_a_stranger_fails_the_job_and_spares_the_stranger(room: Room) -> None:
    stranger = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "j-master-0", "namespace": "default"},
                "spec": {"containers": [{"name": "c", "image": "i"}]}}  # fmt: skip
    await room.server.put(make_node("n1"))
    await room.server.put(stranger)
    await room.start()
    await room.server.put(kubedl_job("PyTorchJob", "j", {"Master": 1}))
    await room.phase_is("pytorchjobs", "j", "Failed")
    assert "is there already" in room.server.find("pytorchjobs", "j")["status"]["conditions"][-1]["message"]
    assert not room.pods()["j-master-0"]["metadata"].get("deletionTimestamp")


async def test_lease_has_one_holder_and_changes_hands(room: Room) -> None:
    settings = LeaseSettings(duration_s=9.0, renew_every_s=0.02)
    seconds = [0.0]
    first = Leader(room.api, "first", settings, lambda: seconds[0])
    second = Leader(room.api, "second", settings, lambda: seconds[0])
    await first.acquire()
    taking = asyncio.create_task(second.acquire())
    await asyncio.sleep(0.1)
    assert (first.is_leading, second.is_leading, taking.done()) == (True, False, False)
    seconds[0] = 7.0  # the first did not renew: it stops before the second may begin
    assert not first.is_leading
    await asyncio.sleep(0.05)
    assert not taking.done()
    seconds[0] = 9.5
    await taking
    assert second.is_leading
    await first.keep()  # returns at once, as the Lease is lost
    await second.release()
    await first.acquire()
    assert room.server.find("leases", settings.name, settings.namespace)["spec"]["leaseTransitions"] == 2

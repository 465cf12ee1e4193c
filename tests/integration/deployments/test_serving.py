"""Deployments of real processes behind a real gateway: nothing is lost, what dies comes back, shares hold."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter

from millpond.api.deployment import DeploymentPhase, ServerPhase
from millpond.api.job import JobPhase
from tests.integration.deployments.conftest import DeploymentRoom, Traffic, get
from tests.integration.jobs.conftest import is_alive, until


def pids(rooms: DeploymentRoom, name: str) -> list[int]:
    """Processes of the replicas that are ready."""
    status = rooms.deployments.get(name)
    ready = [replica.uid for replica in status.replicas if replica.phase is ServerPhase.READY]
    return [run.pid for uid in ready for run in rooms.client.get(uid).replicas if run.pid is not None]


def test_a_rolling_update_and_a_rollback_lose_no_request(rooms: DeploymentRoom) -> None:
    address = rooms.apply("roll", ", replicas: 2", "{ANSWER: one}").address
    rooms.settle("roll")
    old = pids(rooms, "roll")
    with Traffic(address) as traffic:
        traffic.wait(20)
        rooms.apply("roll", ", replicas: 2", "{ANSWER: two, START_S: '0.3'}")
        status = rooms.settle("roll")
        traffic.wait(20)
        assert {replica.revision for replica in status.replicas} == {2}
        assert get(address)[1] == b"two"
        rooms.deployments.roll_back("roll")
        status = rooms.settle("roll")
        traffic.wait(20)
    assert traffic.lost == []
    assert get(address)[1] == b"one"
    assert status.versions[0].revision == 1
    until(lambda: not any(is_alive(pid) for pid in old))


def test_a_replica_that_is_killed_is_replaced(rooms: DeploymentRoom) -> None:
    address = rooms.apply("dies", ", replicas: 2").address
    rooms.settle("dies")
    victim = pids(rooms, "dies")[0]
    os.kill(victim, signal.SIGKILL)
    for _ in range(20):  # a request without an answer yet goes to the other one
        assert get(address)[0] == 200
    until(lambda: len(set(pids(rooms, "dies")) - {victim}) == 2)
    reasons = [event.reason for event in rooms.deployments.events(rooms.deployments.get("dies"))]
    assert "Failed" in reasons


def test_requests_are_split_by_weight(rooms: DeploymentRoom) -> None:
    more = ", versions: {v1: {weight: 90}, v2: {weight: 10, replicas: 2}}"
    address = rooms.apply("shared", more).address
    rooms.settle("shared")
    seen = Counter(get(address)[2] for _ in range(200))
    assert seen == {"v1": 180, "v2": 20}
    assert {get(address, headers={"X-Millpond-Version": "v2"})[2] for _ in range(5)} == {"v2"}
    rooms.deployments.split("shared", {"v1": 0, "v2": 100})
    until(lambda: rooms.deployments.get("shared").is_settled)
    assert {get(address)[2] for _ in range(20)} == {"v2"}
    assert get(address, headers={"X-Millpond-Version": "v3"})[0] == 404


def test_replicas_follow_what_they_measure(rooms: DeploymentRoom) -> None:
    load = rooms.work / "load"
    load.write_text("[0, 0.1]")
    rule = ", autoscale: {min: 1, max: 3, queue: 4, kv: 0.8, down: 1s}"
    rooms.apply("grows", rule, f"{{LOAD_FILE: {load}}}")
    rooms.settle("grows")
    load.write_text("[4, 1.0]")  # each replica says so: two are not enough either
    rooms.wait_for("grows", lambda status: status.is_settled and status.versions[0].ready == 3)
    load.write_text("[0, 0.1]")
    rooms.wait_for("grows", lambda status: status.is_settled and status.versions[0].ready == 1)
    events = [event.message for event in rooms.deployments.events(rooms.deployments.get("grows"))]
    assert "Version v1: 2 -> 3 replicas." in events


def test_without_replicas_a_request_waits_for_the_first(rooms: DeploymentRoom) -> None:
    rule = ", autoscale: {min: 0, max: 2, requests: 8, down: 1s}"
    address = rooms.apply("sleeps", rule).address
    rooms.settle("sleeps")
    assert rooms.deployments.get("sleeps").replicas == ()
    assert get(address)[0] == 200
    rooms.wait_for("sleeps", lambda status: status.is_settled and not status.replicas)


def test_it_goes_on_without_controller_and_gateway(rooms: DeploymentRoom) -> None:
    address = rooms.apply("stays", ", replicas: 2").address
    rooms.settle("stays")
    before = pids(rooms, "stays")
    with Traffic(address) as traffic:
        traffic.wait(10)
        rooms.kill_controller()
        traffic.wait(10)
    assert traffic.lost == []
    rooms.start_controller()
    gateway = next(job for job in rooms.client.jobs() if job.name.startswith("stays-gateway-"))
    (run,) = rooms.wait_running(gateway.name).replicas
    assert run.pid is not None
    os.kill(run.pid, signal.SIGKILL)
    killed_s = time.time()
    rooms.wait(gateway.name, lambda job: job.restarts == 1 and job.phase is JobPhase.RUNNING)
    rooms.wait_for("stays", lambda status: status.is_settled and status.seen_s > killed_s)
    assert get(address)[0] == 200
    assert pids(rooms, "stays") == before


def test_a_bad_revision_never_takes_over(rooms: DeploymentRoom) -> None:
    address = rooms.apply("bad", ", replicas: 2").address
    rooms.settle("bad")
    rooms.apply("bad", ", replicas: 2", "{FAIL_AT_START: '1'}")
    status = rooms.wait_for("bad", lambda status: status.phase is DeploymentPhase.FAILING)
    assert "ended with code 1" in status.message
    assert status.versions[0].ready == 2
    assert get(address)[0] == 200
    failed = next(replica for replica in status.replicas if replica.phase is ServerPhase.ENDED)
    assert b"cannot start" in b"".join(rooms.deployments.logs(failed))
    rooms.deployments.roll_back("bad")
    assert {replica.revision for replica in rooms.settle("bad").replicas if replica.phase is ServerPhase.READY} == {1}


def test_deleting_leaves_nothing(rooms: DeploymentRoom) -> None:
    address = rooms.apply("goes", ", replicas: 2").address
    rooms.settle("goes")
    running = pids(rooms, "goes")
    with Traffic(address, clients=2, path="/stream?pieces=5&wait=0.2") as traffic:
        traffic.wait(2)
        assert rooms.deployments.delete(["goes"]) == [True]
    assert [found for found in traffic.lost if isinstance(found, tuple) and found[0] == 200] == []  # none broke off
    assert "goes" not in {status.name for status in rooms.deployments.deployments()}
    until(lambda: not any(is_alive(pid) for pid in running))
    until(lambda: not any(job.name.startswith("goes-") for job in rooms.client.jobs()))


def test_the_gateway_shows_what_it_counts(rooms: DeploymentRoom) -> None:
    address = rooms.apply("counts").address
    rooms.settle("counts")
    get(address)
    get(address, "/missing")
    page = get(address, "/-/gateway/metrics")[1].decode()
    assert 'millpond_gateway_requests_total{version="v1"} 2' in page
    assert 'millpond_gateway_answers_total{version="v1",status="4xx"} 1' in page
    assert json.loads(get(address, "/-/gateway/health")[1]) == {"status": "ok"}

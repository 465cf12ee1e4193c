"""The table of deployments on SQLite and on a real PostgreSQL server."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from millpond.api.deployment import DeploymentExistsError
from millpond.api.job import SpecError
from millpond.jobs.deployments.report import make_status
from millpond.jobs.deployments.spec import load_deployments
from millpond.jobs.deployments.store import DeploymentStore
from millpond.jobs.deployments.wish import Wish, make_wish
from millpond.jobs.spec import load_jobs
from millpond.jobs.state import make_job_state
from millpond.jobs.store import JobStore


@pytest.fixture
def store(location: Path | str) -> Iterator[DeploymentStore]:
    jobs = JobStore(location)
    made = DeploymentStore(location)
    yield made
    made.close()
    jobs.close()


def wish(name: str, namespace: str = "default") -> Wish:
    (spec,) = load_deployments(f"{{name: {name}, namespace: {namespace}, run: x, port: 80}}")
    return make_wish(spec, f"{namespace}-{name}", 1_790_000_000.25, "/", {"PATH": "/bin"})


def test_wishes_and_statuses_are_read_back_whole(store: DeploymentStore) -> None:
    made = [wish("a"), wish("b"), wish("a", "other")]
    store.add(made)
    assert [found for found, _ in store.all()] == made[::-1]
    assert [found.uid for found, _ in store.find("a")] == ["default-a", "other-a"]
    assert [found.uid for found, _ in store.find("a", "other")] == ["other-a"]
    status = make_status(made[0], (), {}, 3, 1.0)
    store.say(status)
    assert store.find("default-a") == [(made[0], status)]
    assert store.status("other-a") is None


def test_a_name_is_taken_once_and_free_when_it_is_gone(store: DeploymentStore) -> None:
    store.add([wish("a")])
    with pytest.raises(DeploymentExistsError):
        store.add([wish("b"), wish("a")])
    assert [found.spec.name for found, _ in store.all()] == ["a"]
    store.bury("default-a", 1.0)
    assert not store.has("default-a")
    again = dataclasses.replace(wish("a"), uid="again")
    store.add([again])
    assert store.wish("again") == again
    assert store.wish("again", newer_than=again.generation) is None


def test_changes_of_many_at_once_are_all_kept(store: DeploymentStore, location: Path | str) -> None:
    store.add([wish("a")])

    def change() -> None:
        own = DeploymentStore(location)
        for _ in range(10):
            own.change("default-a", lambda now: dataclasses.replace(now, generation=now.generation + 1))
        own.close()

    threads = [threading.Thread(target=change) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = store.wish("default-a")
    assert found is not None
    assert found.generation == wish("a").generation + 40


def test_a_change_that_fails_changes_nothing(store: DeploymentStore) -> None:
    store.add([wish("a")])

    def refuse(_: Wish) -> Wish:
        raise SpecError("no")

    with pytest.raises(SpecError):
        store.change("default-a", refuse)
    assert store.wish("default-a") == wish("a")


def test_jobs_of_replicas_are_found(store: DeploymentStore, location: Path | str) -> None:
    states = [
        make_job_state(spec, f"uid-{spec.name}", 1.0)
        for spec in load_jobs("{name: s, framework: serving, run: x}\n---\n{name: other, run: x}")
    ]
    jobs = JobStore(location)
    jobs.submit(states)
    with jobs.transaction():
        jobs.explain({"uid-s": {"message": "full"}})
    assert store.servers() == states[:1]
    assert store.jobs(["uid-s", "uid-gone"]) == {"uid-s": (states[0], {"message": "full"})}
    jobs.close()

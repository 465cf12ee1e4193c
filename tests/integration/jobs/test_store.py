"""The store of jobs on SQLite and on a real PostgreSQL server: one behaviour, the same tests over both."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from millpond.api.job import JobExistsError, JobPhase
from millpond.base.errors import MillpondError
from millpond.jobs.spec import load_jobs
from millpond.jobs.state import JobState, make_job_state
from millpond.jobs.store import EventRecord, JobStore, ModelVersionRecord
from millpond.jobs.store_database import StoreClaimedError, StoreUnavailableError
from tests.integration.jobs.conftest import LocalRoom
from tests.support.jobs_room import JobsRoom
from tests.support.postgres import PostgresServer

pytestmark = pytest.mark.integration


@pytest.fixture
def store(location: Path | str) -> Iterator[JobStore]:
    made = JobStore(location)
    yield made
    made.close()


def job(name: str, uid: str = "", namespace: str = "default") -> JobState:
    (spec,) = load_jobs(f"{{name: {name}, namespace: {namespace}, run: echo}}")
    return make_job_state(spec, uid or f"uid-{name}", 1_790_000_000.25)


def names(store: JobStore, **query: object) -> list[str]:
    return [record.state.spec.name for record in store.records(**query)]  # type: ignore[arg-type]


def test_what_was_submitted_is_read_back_whole_and_in_order(store: JobStore) -> None:
    states = [job("a"), job("b"), job("c")]
    store.submit(states)
    assert [record.state for record in store.load()] == states
    first = store.load()[0].number
    assert [record.state.spec.name for record in store.load(first)] == ["b", "c"]
    assert names(store) == ["c", "b", "a"]
    assert store.has_work()


def test_a_name_is_taken_once_in_a_namespace_and_all_or_none_are_submitted(store: JobStore) -> None:
    store.submit([job("a")])
    with pytest.raises(JobExistsError, match="There is a job 'a' in namespace 'default' already"):
        store.submit([job("b"), job("a", "other")])
    assert names(store) == ["a"]
    store.submit([job("a", "elsewhere", "research")])
    assert names(store, namespace="research") == ["a"]
    assert len(store.find("a")) == 2
    assert len(store.find("a", "research")) == 1


def test_a_transaction_goes_on_after_a_name_that_was_taken(store: JobStore) -> None:
    store.submit([job("a")])
    with store.transaction():
        with pytest.raises(JobExistsError):
            store.add(job("a", "other"))
        store.add(job("b"))
    assert names(store) == ["b", "a"]


def test_a_transaction_that_fails_leaves_nothing(store: JobStore) -> None:
    def fail() -> None:
        with store.transaction():
            store.add(job("a"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(store) == []
    store.submit([job("a")])


def test_records_events_and_versions_survive_the_deletion_of_their_job(store: JobStore, location: Path | str) -> None:
    state = job("a")
    store.submit([state])
    with store.transaction():
        store.add_events([(state.uid, EventRecord(1.5, "Normal", "JobCreated", "Made."))])
        store.add_model_version(ModelVersionRecord("mv-a", "model", "/models/a", state.uid, 2.5, "me"))
        store.add_model_version(ModelVersionRecord("mv-a", "again", "/models/a", state.uid, 3.5, "me"))
    state.phase, state.finished_s, state.deleted_s = JobPhase.SUCCEEDED, 10.0, 11.5
    with store.transaction():
        store.save([state])
    store.submit([job("a", "second")])  # the name is free again
    again = JobStore(location)
    assert again.load()[0].state.uid == "second"
    assert [record.state.uid for record in again.find("a")] == ["second", "uid-a"]
    assert again.find("uid-a")[0].state.deleted_s == 11.5
    assert names(again, deleted=True) == ["a", "a"]
    assert again.events("uid-a") == [EventRecord(1.5, "Normal", "JobCreated", "Made.")]
    assert [version.model for version in again.model_versions()] == ["model"]
    again.close()


def test_wishes_explanations_and_facts(store: JobStore) -> None:
    store.submit([job("a")])
    store.ask("uid-a", "delete")
    ((number, uid, verb),) = store.wishes()
    assert (uid, verb) == ("uid-a", "delete")
    with store.transaction():
        store.grant([number])
        store.explain({"uid-a": {"message": "It is next.", "position": 1}})
    assert store.wishes() == []
    assert store.find("a")[0].explanation == {"message": "It is next.", "position": 1}
    with store.transaction():
        store.explain({"uid-a": {}})
    assert store.find("a")[0].explanation == {}
    assert store.fact("nodes") is None
    store.set_fact("nodes", "[]")
    store.set_fact("nodes", "[1]")
    assert store.fact("nodes") == "[1]"


def test_a_reader_that_goes_by_numbers_misses_no_job_of_many_writers(location: Path | str) -> None:
    def write(writer: int) -> None:
        store = JobStore(location)
        for number in range(10):
            store.submit([job(f"w{writer}-{number}")])
        store.close()

    reader = JobStore(location)
    threads = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
    for thread in threads:
        thread.start()
    seen: list[str] = []
    last = 0
    while len(seen) < 40 and (any(thread.is_alive() for thread in threads) or reader.load(last)):
        for record in reader.load(last):
            last = record.number
            seen.append(record.state.spec.name)
    for thread in threads:
        thread.join()
    assert sorted(seen) == sorted(f"w{writer}-{number}" for writer in range(4) for number in range(10))
    reader.close()


def test_tables_of_a_later_version_are_refused_and_left_alone(store: JobStore, location: Path | str) -> None:
    store.set_fact("version", "99")
    with pytest.raises(MillpondError, match=r"was written by a later version \(99\)"):
        JobStore(location)
    assert store.fact("version") == "99"


@pytest.mark.parametrize("seed", range(2))
def test_controllers_that_die_lose_nothing_on_either_database(location: Path | str, seed: int) -> None:
    chance = random.Random(seed)
    room = JobsRoom(location, cpus=4.0)
    uids = [uid for n in range(6) for uid in room.submit(f"{{name: j{n}, run: x, roles: {{worker: {{replicas: 2}}}}}}")]
    for _ in range(20):
        if chance.random() < 0.3:
            room.restart()
        if room.cluster.live and chance.random() < 0.5:
            room.cluster.end(chance.choice(sorted(room.cluster.live, key=str)), 0)
        room.turn(0.5, 1)
    for _ in range(60):
        for run_id in sorted(room.cluster.live, key=str):
            room.cluster.end(run_id, 0)
        room.turn(5.0, 1)
    assert {room.store.find(uid)[0].state.phase for uid in uids} == {JobPhase.SUCCEEDED}
    room.store.close()


def test_a_second_controller_is_kept_out_of_a_server_until_the_first_is_gone(server: PostgresServer) -> None:
    url = server.make_database()
    first, second = JobStore(url), JobStore(url)
    first.claim()
    with pytest.raises(StoreClaimedError, match="Another controller works on postgresql://millpond@/store"):
        second.claim()
    second.submit([job("a")])  # submitting needs no claim
    first.close()
    deadline = time.monotonic() + 10.0
    while True:
        try:
            second.claim()
            break
        except StoreClaimedError:
            assert time.monotonic() < deadline
    second.close()


def test_a_lost_connection_is_a_clear_error_once_and_then_the_store_goes_on(server: PostgresServer) -> None:
    url = server.make_database()
    store = JobStore(url)
    store.submit([job("a")])

    def lose_it() -> None:
        with store.transaction():
            store.add(job("lost"))
            server.cut(url)
            store.add(job("too"))

    with pytest.raises(StoreUnavailableError, match=r"postgresql://millpond@/store\d+ does not answer"):
        lose_it()
    store.submit([job("b")])
    assert names(store) == ["b", "a"]
    store.close()


def test_a_controller_that_lost_its_connection_writes_nothing_before_it_has_claimed_again(
    server: PostgresServer,
) -> None:
    url = server.make_database()
    store = JobStore(url)
    store.claim()
    server.cut(url)
    for _ in range(2):
        with pytest.raises(StoreUnavailableError):
            store.submit([job("a")])
    store.claim()
    store.submit([job("a")])
    assert names(store) == ["a"]
    store.close()


def test_a_server_that_comes_back_has_all_that_was_committed(server: PostgresServer) -> None:
    url = server.make_database()
    store = JobStore(url)
    store.submit([job("a")])
    server.stop()
    with pytest.raises(StoreUnavailableError):
        store.load()
    with pytest.raises(StoreUnavailableError):
        JobStore(url)
    server.start()
    assert names(store) == ["a"]
    store.close()


def test_a_real_controller_outlives_its_database_and_nothing_runs_twice(server: PostgresServer, tmp_path: Path) -> None:
    url = server.make_database()
    room = LocalRoom(tmp_path, url)
    line = "echo $MILLPOND_JOB_NAME/$MILLPOND_JOB_ATTEMPT >> starts; while [ ! -e go ]; do sleep 0.05; done"
    room.client.submit(f"{{name: a, run: '{line}'}}")
    room.wait_running("a")
    server.stop()
    with pytest.raises(StoreUnavailableError):
        room.client.get("a")
    (room.work / "go").touch()  # it ends while nobody can write that down
    server.start()
    assert room.wait_end("a").phase is JobPhase.SUCCEEDED
    room.client.submit(f"{{name: b, run: '{line}'}}")
    assert room.wait_end("b").phase is JobPhase.SUCCEEDED
    assert (room.work / "starts").read_text().split() == ["a/1", "b/1"]
    assert not room.place.database.exists()
    room.close()


def test_a_job_submitted_elsewhere_is_run_by_the_one_controller_of_a_database(
    server: PostgresServer, tmp_path: Path
) -> None:
    url = server.make_database()
    rooms = [LocalRoom(tmp_path / name, url) for name in ("here", "there") if not (tmp_path / name).mkdir()]
    rooms[0].client.submit("{name: a, run: 'true'}")
    rooms[0].wait_end("a")
    rooms[1].client.submit("{name: b, run: 'true'}")
    assert rooms[1].wait_end("b").phase is JobPhase.SUCCEEDED
    assert "Elsewhere: Another controller works on" in rooms[1].place.log.read_text()
    rooms[0].close()
    rooms[1].client.close()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("mysql://host/jobs", "'mysql://host/jobs' is no database for jobs"),
        ("postgresql://me:secret@127.0.0.1:1/jobs", "postgresql://me@127.0.0.1:1/jobs does not answer"),
    ],
)
def test_a_url_that_leads_nowhere_is_told_without_its_password(url: str, said: str) -> None:
    with pytest.raises(MillpondError) as caught:
        JobStore(url)
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)

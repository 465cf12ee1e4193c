from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from millpond.api.job import JobExistsError, JobNotFoundError, JobPhase, SpecError
from millpond.jobs.client import JobsClient
from millpond.jobs.rest import VERBS, make_app, make_document, read_token
from millpond.jobs.rest_client import RestJobsClient
from tests.integration.jobs.conftest import LocalRoom, until
from tests.support.jobs_server import serve

TOKEN = "secret"


@pytest.fixture
def remote(room: LocalRoom) -> Iterator[RestJobsClient]:
    app = make_app(lambda: JobsClient(room.place.root, {"PATH": "/usr/bin:/bin"}, str(room.work)), TOKEN)
    with serve(app) as url:
        yield RestJobsClient(url, TOKEN)


def test_a_job_from_submit_to_record_over_http(room: LocalRoom, remote: RestJobsClient) -> None:
    (made,) = remote.submit("{name: hello, run: 'echo one; sleep 0.3; echo two'}")
    assert made.phase is JobPhase.CREATED
    assert b"".join(remote.logs("hello", follow=True)) == b"one\ntwo\n"
    until(lambda: remote.get("hello").phase is JobPhase.SUCCEEDED)
    assert b"".join(remote.logs("hello", tail=1)) == b"two\n"
    assert remote.events("hello")[0].reason == "JobCreated"
    assert [job.name for job in remote.jobs()] == ["hello"]
    assert remote.queue() == []
    assert remote.nodes()[0].used_cpus == 0
    assert remote.delete("hello")[0].deleted_s is not None
    assert remote.jobs() == []
    assert [job.name for job in remote.jobs(with_deleted=True)] == ["hello"]


def test_errors_keep_their_kind_and_path(remote: RestJobsClient) -> None:
    with pytest.raises(SpecError, match="Did you mean 'run'") as caught:
        remote.submit("{name: a, rnu: x}")
    assert caught.value.param == "rnu"
    with pytest.raises(JobNotFoundError):
        remote.get("nobody")
    remote.submit("{name: a, run: sleep 30}")
    with pytest.raises(JobExistsError):
        remote.submit("{name: a, run: x}")


def make_offline(room: LocalRoom) -> httpx.AsyncClient:
    app = make_app(lambda: JobsClient(room.place.root, starts_controller=False), TOKEN)
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://jobs")


@pytest.mark.parametrize("header", [None, "Bearer wrong", "secret", "Bearer secret "])
async def test_nobody_gets_in_without_the_token(room: LocalRoom, header: str | None) -> None:
    async with make_offline(room) as client:
        headers = {} if header is None else {"Authorization": header.strip() + ("x" if header.endswith(" ") else "")}
        reply = await client.post("/api/v1/jobs", content="{name: a, run: x}", headers=headers)
    assert reply.status_code == 401
    assert room.client.jobs() == []


@pytest.mark.parametrize(
    ("path", "status"),
    [("/api/v1/jobs?nmespace=a", 400), ("/api/v1/jobs/x/logs?tail=-1", 404), ("/api/v1/jobs/..%2fx", 404)],
)
async def test_a_wrong_request_is_an_error_of_the_callers(room: LocalRoom, path: str, status: int) -> None:
    async with make_offline(room) as client:
        reply = await client.get(path, headers={"Authorization": f"Bearer {TOKEN}"})
    assert reply.status_code == status


async def test_a_body_without_end_is_refused(room: LocalRoom) -> None:
    async with make_offline(room) as client:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        reply = await client.post("/api/v1/jobs", content=b"x" * (2 << 20), headers=headers)
    assert reply.status_code == 400


def test_the_document_names_every_route_and_defines_what_it_refers_to() -> None:
    document = make_document()
    served = {(m.upper(), p.removeprefix("/api/v1")) for p, item in document["paths"].items() for m in item}
    assert served == {
        (verb.method, verb.path) for verb in VERBS
    }
    assert {"JobStatus", "ReplicaStatus", "EventRecord", "NodeStatus"} <= set(document["components"]["schemas"])


def test_the_token_is_made_once_and_for_its_owner_alone(room: LocalRoom) -> None:
    path = room.place.root / "token"
    assert read_token(path) == read_token(path)
    assert path.stat().st_mode & 0o777 == 0o600

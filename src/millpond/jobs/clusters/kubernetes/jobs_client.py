"""The verbs of jobs against a Kubernetes cluster: objects in, statuses out, logs from pods.

What the operator wrote down beside a job (its Reservation) is the same state that a local controller keeps, so one
function makes the status for both. Every verb is a short conversation of its own. Called by the command line.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

from millpond.api.job import Condition, JobNotFoundError, JobPhase, JobSpec, JobStatus, ReplicaStatus, SpecError
from millpond.base.suggest import did_you_mean
from millpond.jobs.clusters.kubernetes.client import ApiError, KubernetesApi
from millpond.jobs.clusters.kubernetes.documents import read_job
from millpond.jobs.clusters.kubernetes.kinds import (
    CRONS,
    EVENTS,
    JOB_KINDS,
    MILLPOND_JOBS,
    NODES,
    PODS,
    RESERVATIONS,
    TOPOLOGIES,
    Object,
    find_job_kind,
)
from millpond.jobs.clusters.kubernetes.nodes import describe_node
from millpond.jobs.clusters.kubernetes.records import read_record, record_name
from millpond.jobs.clusters.kubernetes.reports import read_time
from millpond.jobs.looking import NodeStatus, ended_before, find_replica, in_queue, wait_until, with_replica
from millpond.jobs.spec_document import Reader, Value, read_documents
from millpond.jobs.state import make_job_state
from millpond.jobs.status import job_status
from millpond.jobs.store import EventRecord

_LOOK_EVERY_S = 0.5
_IN_METADATA = ("name", "namespace", "labels", "annotations")
_T = TypeVar("_T")
Connect = Callable[[], Awaitable[KubernetesApi]]


class KubernetesJobs:
    """Jobs of one cluster.

    Args:
        connect: Opens a connection; each verb has its own.
        namespace: Where jobs go that name none.
    """

    def __init__(self, connect: Connect, namespace: str = "default") -> None:
        self._connect = connect
        self._namespace = namespace
        self._runner = asyncio.Runner()

    def close(self) -> None:
        """Ends everything."""
        self._runner.close()

    def submit_texts(self, texts: Sequence[str], _notes: Sequence[str] = ()) -> list[JobStatus]:
        """Creates the jobs of YAML texts, ours or KubeDL's: all, or none when one of them is refused.

        Raises:
            SpecError: Something is wrong with one, by us or by the API server.
            ApiError: The API server refuses.
        """
        bodies = [self._body(document) for text in texts for document in read_documents(text)]
        for body in bodies:
            read_job(body)

        async def create(api: KubernetesApi) -> list[JobStatus]:
            kinds = [find_job_kind(body) for body in bodies]
            pairs = [(kind, body) for kind, body in zip(kinds, bodies, strict=True) if kind is not None]
            for kind, body in pairs:
                await api.create(kind, body, dry_run=True)
            return [_status(await api.create(kind, body), None) for kind, body in pairs]

        return self._run(create)

    def jobs(self, namespace: str | None = None, *, with_deleted: bool = False) -> list[JobStatus]:
        """Jobs of a namespace, or of all, newest first; what was deleted is gone here."""

        async def look(api: KubernetesApi) -> list[JobStatus]:
            found = await asyncio.gather(*(_list(api, kind, namespace or "") for kind in JOB_KINDS))
            records = {
                (item["metadata"].get("namespace", ""), item["metadata"]["name"]): item
                for item in await _list(api, RESERVATIONS, namespace or "")
            }
            return [_status(body, _record_of(body, records)) for bodies in found for body in bodies]

        return sorted(self._run(look), key=lambda status: -status.created_s)

    def get(self, name: str, namespace: str | None = None) -> JobStatus:
        """A job by name or uid.

        Raises:
            JobNotFoundError: There is none, or there are several.
        """
        known = self.jobs(namespace)
        found = [status for status in known if name in (status.name, status.uid)]
        if not found:
            near = did_you_mean(name, [status.name for status in known]) or "See `list`."
            where = f" in namespace '{namespace}'" if namespace is not None else ""
            raise JobNotFoundError(f"There is no job '{name}'{where} in the cluster.", fix=near, param="name")
        if len(found) > 1:
            places = ", ".join(sorted(f"{status.kind} in {status.namespace}" for status in found))
            raise JobNotFoundError(f"Several jobs are called '{name}': {places}.", fix="Say -n.", param="name")
        return found[0]

    def events(self, status: JobStatus) -> list[EventRecord]:
        """What the operator said about a job, oldest first."""

        async def look(api: KubernetesApi) -> list[EventRecord]:
            items, _ = await api.list(EVENTS, status.namespace)
            own = [item for item in items if _is_about(item, status)]
            seen = [
                EventRecord(read_time(item.get("lastTimestamp")) or 0.0, item.get("type", "Normal"),
                            item.get("reason", ""), item.get("message", ""))
                for item in own
            ]  # fmt: skip
            return sorted(seen, key=lambda event: event.at_s)

        return self._run(look)

    def queue(self) -> list[JobStatus]:
        """Jobs that wait, in the scheduler's order."""
        return in_queue(self.jobs())

    def delete(self, names: Sequence[str], namespace: str | None = None, wait_s: float = 20.0) -> list[JobStatus]:
        """Deletes jobs; the operator stops what runs.

        Raises:
            JobNotFoundError: One of them is not there; then none is deleted.
        """
        found = [self.get(name, namespace) for name in names]

        async def remove(api: KubernetesApi) -> set[str]:
            for status in found:
                await api.delete(_kind_of(status), status.namespace, status.name)
            left = {status.uid for status in found}
            deadline = time.monotonic() + wait_s
            while left and time.monotonic() < deadline:
                for status in [status for status in found if status.uid in left]:
                    body = await api.get(_kind_of(status), status.namespace, status.name)
                    if body is None or body["metadata"]["uid"] != status.uid:
                        left.discard(status.uid)
                if left:
                    await asyncio.sleep(_LOOK_EVERY_S)
            return left

        left = self._run(remove)
        now_s = time.time()
        return [status if status.uid in left else dataclasses.replace(status, deleted_s=now_s) for status in found]

    def prune(self, older_than_s: float, namespace: str | None = None) -> list[JobStatus]:
        """Deletes jobs that ended so long ago."""
        old = ended_before(self.jobs(namespace), time.time() - older_than_s)
        return self.delete(old) if old else []

    def spec(self, name: str, namespace: str | None = None) -> JobSpec:
        """What was asked for."""
        status = self.get(name, namespace)

        async def look(api: KubernetesApi) -> JobSpec:
            body = await api.get(_kind_of(status), status.namespace, status.name)
            if body is None:
                raise JobNotFoundError(f"'{name}' is gone.", param="name")
            return read_job(body).spec

        return self._run(look)

    def suspend(self, name: str, namespace: str | None = None, *, resume: bool = False) -> JobStatus:
        """Stops a cron from making jobs, or lets it go on."""
        status = self.get(name, namespace)
        if status.kind != CRONS.kind:
            raise JobNotFoundError(f"'{name}' is a job, not a cron.", param="name")

        async def write(api: KubernetesApi) -> None:
            await api.patch(CRONS, status.namespace, status.name, {"spec": {"suspend": not resume}})

        self._run(write)
        return status

    def is_suspended(self, status: JobStatus) -> bool:
        """Whether a cron makes no jobs now."""
        cron = self.spec(status.uid, status.namespace).cron
        return cron is not None and cron.suspend

    def nodes(self) -> list[NodeStatus]:
        """The machines, and what jobs hold of them by what the operator wrote down."""

        async def look(api: KubernetesApi) -> list[list[Object]]:
            return [await _list(api, kind, "") for kind in (NODES, TOPOLOGIES, RESERVATIONS)]

        nodes, topologies, reservations = self._run(look)
        wired = {topology["metadata"]["name"]: topology for topology in topologies}
        found = {node["metadata"]["name"]: describe_node(node, wired) for node in nodes}
        for state in filter(None, map(read_record, reservations)):
            for replica in state.live:
                if replica.node in found:
                    found[replica.node] = with_replica(found[replica.node], state, replica.role, replica.index)
        return list(found.values())

    def find_replica(self, status: JobStatus, name: str | None) -> ReplicaStatus:
        """A replica by its name; without one the chief."""
        return find_replica(status, name)

    def logs(
        self, status: JobStatus, replica: ReplicaStatus, *, follow: bool = False, tail: int | None = None
    ) -> Iterator[bytes]:
        """What a replica's main container wrote, in pieces; with `follow` until it has ended."""
        source = self._log(status, replica, follow=follow, tail=tail)

        async def following() -> bytes | None:
            return await anext(source, None)

        try:
            while (piece := self._runner.run(following())) is not None:
                yield piece
        finally:
            self._runner.run(source.aclose())

    def wait(self, name: str, until: Callable[[JobStatus], bool], timeout_s: float) -> JobStatus:
        """Waits until a job is as wanted, or the time is over; returns how it is then."""
        return wait_until(lambda: self.get(name), until, timeout_s, _LOOK_EVERY_S)

    async def _log(
        self, status: JobStatus, replica: ReplicaStatus, *, follow: bool, tail: int | None
    ) -> AsyncGenerator[bytes]:
        api = await self._connect()
        try:
            pod = await api.get(PODS, status.namespace, replica.name)
            if pod is None:
                raise JobNotFoundError(f"There is no pod {replica.name}.", fix=status.waiting, param="instance")
            container = pod["spec"]["containers"][0]["name"]
            async for piece in api.read_log(status.namespace, replica.name, container, follow=follow, tail=tail):
                yield piece
        finally:
            await api.close()

    def _body(self, document: Reader) -> Object:
        """An object for the API server: as it is, or our short form put into a MillpondJob."""
        value = document.value
        if not isinstance(value, dict):
            raise document.fail("must be a mapping.")
        if "apiVersion" in value or "kind" in value:
            body: Object = dict(value)
            metadata = document.need("metadata")
            metadata.need("name").text()
            body["metadata"] = {"namespace": self._namespace, **dict(_mapping(metadata))}
            if find_job_kind(body) is None:
                kinds = ", ".join(kind.kind for kind in JOB_KINDS)
                raise document.need("kind").fail("the operator knows no such kind.", f"Known are {kinds}.")
            return body
        document.need("name").text()
        metadata_fields = {"namespace": self._namespace, **{key: value[key] for key in _IN_METADATA if key in value}}
        spec = {key: field for key, field in value.items() if key not in _IN_METADATA}
        kind = MILLPOND_JOBS
        return {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": metadata_fields, "spec": spec}

    def _run(self, act: Callable[[KubernetesApi], Coroutine[Any, Any, _T]]) -> _T:
        async def conversation() -> _T:
            api = await self._connect()
            try:
                return await act(api)
            finally:
                await api.close()

        return self._runner.run(conversation())


def _mapping(reader: Reader) -> dict[str, Value]:
    if not isinstance(reader.value, dict):
        raise reader.fail("must be a mapping.")
    return reader.value


async def _list(api: KubernetesApi, kind: Any, namespace: str) -> list[Object]:
    """Objects of a kind; none where the kind is not installed."""
    try:
        return (await api.list(kind, namespace))[0]
    except ApiError as error:
        if error.status == 404:
            return []
        raise


def _record_of(body: Object, records: dict[tuple[str, str], Object]) -> Object | None:
    metadata = body["metadata"]
    found = records.get((metadata.get("namespace", ""), record_name(body["kind"], metadata["name"])))
    owners = [] if found is None else found["metadata"].get("ownerReferences") or []
    return found if any(owner.get("uid") == metadata.get("uid") for owner in owners) else None


def _status(body: Object, record: Object | None) -> JobStatus:
    """How a job goes: from the operator's own record, or from what its object says."""
    said: Object = body.get("status") or {}
    explanation = said.get("explanation") or {}
    state = None if record is None else read_record(record)
    created_s = read_time(body["metadata"].get("creationTimestamp")) or 0.0
    uid = str(body["metadata"].get("uid", ""))
    if state is None:
        try:
            spec: JobSpec = read_job(body).spec
        except SpecError as error:
            return _refused(body, str(error), created_s)
        state = make_job_state(spec, uid, created_s)
        phase = said.get("phase")
        if state.cron is None and phase in [member.value for member in JobPhase]:
            state.phase = JobPhase(phase)
        state.conditions = [_condition(item) for item in said.get("conditions") or ()] or state.conditions
        state.started_s, state.finished_s = read_time(said.get("startTime")), read_time(said.get("completionTime"))
    found = job_status(state, explanation)
    return dataclasses.replace(found, uid=uid, kind=body["kind"], waiting=said.get("waiting") or found.waiting)


def _refused(body: Object, problem: str, created_s: float) -> JobStatus:
    """An object that describes no job: the operator refuses it, or will."""
    metadata = body["metadata"]
    failed = Condition(JobPhase.FAILED, "InvalidSpec", problem, created_s)
    return JobStatus(
        uid=str(metadata.get("uid", "")), name=metadata["name"], namespace=metadata.get("namespace", ""),
        kind=body["kind"], framework="", phase=JobPhase.FAILED, conditions=(failed,), replicas=(), tenant="",
        priority=0, created_s=created_s, finished_s=created_s,
    )  # fmt: skip


def _condition(item: Object) -> Condition:
    at_s = read_time(item.get("lastTransitionTime")) or 0.0
    kind = JobPhase(item["type"])
    return Condition(kind, item.get("reason", ""), item.get("message", ""), at_s, item.get("status") == "True")


def _kind_of(status: JobStatus) -> Any:
    kind = next((kind for kind in JOB_KINDS if kind.kind == status.kind), None)
    return MILLPOND_JOBS if kind is None else kind


def _is_about(event: Object, status: JobStatus) -> bool:
    about: Object = event.get("involvedObject") or {}
    return about.get("uid") == status.uid

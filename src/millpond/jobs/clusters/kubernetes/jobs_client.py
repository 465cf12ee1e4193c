"""The verbs of jobs against a Kubernetes cluster: objects in, statuses out, logs from pods.

What the operator wrote down beside a job (its Reservation) is the same state that a local controller keeps, so one
function makes the status for both. Every verb is a short conversation of its own. Called by the command line.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from millpond.api.job import JobNotFoundError, JobSpec, JobStatus, ReplicaStatus
from millpond.base.suggest import did_you_mean
from millpond.jobs.clusters.kubernetes.client import ApiError, KubernetesApi
from millpond.jobs.clusters.kubernetes.documents import read_job
from millpond.jobs.clusters.kubernetes.kinds import (
    CLAIMS,
    CRONS,
    EVENTS,
    JOB_KINDS,
    MILLPOND_JOBS,
    NODES,
    RESERVATIONS,
    TOPOLOGIES,
    Object,
    find_job_kind,
)
from millpond.jobs.clusters.kubernetes.nodes import describe_node
from millpond.jobs.clusters.kubernetes.objects import make_object, resized
from millpond.jobs.clusters.kubernetes.reading import ClaimStatus, read_claim, read_status, record_of
from millpond.jobs.clusters.kubernetes.records import read_record, record_name
from millpond.jobs.clusters.kubernetes.reports import read_time
from millpond.jobs.clusters.kubernetes.talk import Connect, Talk
from millpond.jobs.looking import NodeStatus, ended_before, find_replica, in_queue, runs_with, wait_until, with_replica
from millpond.jobs.resizing import check_size, elastic_role
from millpond.jobs.spec_document import read_documents
from millpond.jobs.store import EventRecord

_LOOK_EVERY_S = 0.5


class KubernetesJobs:
    """Jobs of one cluster.

    Args:
        connect: Opens a connection; each verb has its own.
        namespace: Where jobs go that name none.
    """

    def __init__(self, connect: Connect, namespace: str = "default") -> None:
        self._talk = Talk(connect)
        self._namespace = namespace

    def close(self) -> None:
        """Ends everything."""
        self._talk.close()

    def submit_texts(self, texts: Sequence[str], _notes: Sequence[str] = ()) -> list[JobStatus]:
        """Creates the jobs of YAML texts, ours or KubeDL's: all, or none when one of them is refused.

        Raises:
            SpecError: Something is wrong with one, by us or by the API server.
            ApiError: The API server refuses.
        """
        bodies = [make_object(document, self._namespace) for text in texts for document in read_documents(text)]
        for body in bodies:
            read_job(body)

        async def create(api: KubernetesApi) -> list[JobStatus]:
            kinds = [find_job_kind(body) for body in bodies]
            pairs = [(kind, body) for kind, body in zip(kinds, bodies, strict=True) if kind is not None]
            for kind, body in pairs:
                await api.create(kind, body, dry_run=True)
            return [read_status(await api.create(kind, body), None) for kind, body in pairs]

        return self._talk.run(create)

    def jobs(self, namespace: str | None = None, *, with_deleted: bool = False) -> list[JobStatus]:
        """Jobs of a namespace, or of all, newest first; what was deleted is gone here."""

        async def look(api: KubernetesApi) -> list[JobStatus]:
            found = await asyncio.gather(*(_list(api, kind, namespace or "") for kind in JOB_KINDS))
            records = {
                (item["metadata"].get("namespace", ""), item["metadata"]["name"]): item
                for item in await _list(api, RESERVATIONS, namespace or "")
            }
            return [read_status(body, record_of(body, records)) for bodies in found for body in bodies]

        return sorted(self._talk.run(look), key=lambda status: -status.created_s)

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

        return self._talk.run(look)

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

        left = self._talk.run(remove)
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

        return self._talk.run(look)

    def scale(
        self, name: str, replicas: int, role: str | None = None, namespace: str | None = None
    ) -> tuple[JobStatus, str]:
        """Gives a role another number of replicas; the operator starts the job again with them.

        Returns:
            The job as it was, and the role.

        Raises:
            JobNotFoundError: There is no such job or role, or the job has ended.
            SpecError: The role cannot have so many.
        """
        status, spec = self.get(name, namespace), self.spec(name, namespace)
        if status.phase.is_final or spec.cron is not None:
            raise JobNotFoundError(f"'{name}' does not run and does not wait.", param="name")
        target = check_size(spec, role, replicas)
        kind = _kind_of(status)

        async def write(api: KubernetesApi) -> None:
            body = await api.get(kind, status.namespace, status.name)
            if body is None:
                raise JobNotFoundError(f"'{name}' is gone.", param="name")
            await api.patch(kind, status.namespace, status.name, resized(body, spec.framework, target.name, replicas))

        self._talk.run(write)
        return status, target.name

    def replicas_of(self, name: str, namespace: str | None = None, role: str | None = None) -> int:
        """How many replicas a role has or shall have; without one the role that is scaled."""
        return elastic_role(self.spec(name, namespace), role).replicas

    def wait_size(self, uid: str, role: str, replicas: int, timeout_s: float) -> bool:
        """Waits until a job runs with so many replicas of a role; returns whether it does."""
        return runs_with(self.wait(uid, lambda status: runs_with(status, role, replicas), timeout_s), role, replicas)

    def suspend(self, name: str, namespace: str | None = None, *, resume: bool = False) -> JobStatus:
        """Stops a cron from making jobs, or lets it go on."""
        status = self.get(name, namespace)
        if status.kind != CRONS.kind:
            raise JobNotFoundError(f"'{name}' is a job, not a cron.", param="name")

        async def write(api: KubernetesApi) -> None:
            await api.patch(CRONS, status.namespace, status.name, {"spec": {"suspend": not resume}})

        self._talk.run(write)
        return status

    def is_suspended(self, status: JobStatus) -> bool:
        """Whether a cron makes no jobs now."""
        cron = self.spec(status.uid, status.namespace).cron
        return cron is not None and cron.suspend

    def nodes(self) -> list[NodeStatus]:
        """The machines, and what jobs hold of them by what the operator wrote down."""

        async def look(api: KubernetesApi) -> list[list[Object]]:
            return [await _list(api, kind, "") for kind in (NODES, TOPOLOGIES, RESERVATIONS)]

        nodes, topologies, reservations = self._talk.run(look)
        wired = {topology["metadata"]["name"]: topology for topology in topologies}
        found = {node["metadata"]["name"]: describe_node(node, wired) for node in nodes}
        for state in filter(None, map(read_record, reservations)):
            for replica in state.live:
                if replica.node in found:
                    found[replica.node] = with_replica(found[replica.node], state, replica.role, replica.index)
        return list(found.values())

    def claims(self, namespace: str | None = None) -> list[ClaimStatus]:
        """Volumes that jobs can mount, by name."""

        async def look(api: KubernetesApi) -> list[Object]:
            return (await api.list(CLAIMS, namespace or self._namespace))[0]

        return sorted(map(read_claim, self._talk.run(look)), key=lambda claim: claim.name)

    def find_replica(self, status: JobStatus, name: str | None) -> ReplicaStatus:
        """A replica by its name; without one the chief."""
        return find_replica(status, name)

    def logs(
        self, status: JobStatus, replica: ReplicaStatus, *, follow: bool = False, tail: int | None = None
    ) -> Iterator[bytes]:
        """What a replica's main container wrote, in pieces; with `follow` until it has ended."""
        return self._talk.log(status.namespace, replica.name, follow=follow, tail=tail, fix=status.waiting)

    def wait(self, name: str, until: Callable[[JobStatus], bool], timeout_s: float) -> JobStatus:
        """Waits until a job is as wanted, or the time is over; returns how it is then."""
        found = self.get(name)
        return wait_until(lambda: self._again(found), until, timeout_s, _LOOK_EVERY_S)

    def _again(self, status: JobStatus) -> JobStatus:
        """How a job is now."""
        kind, name = _kind_of(status), record_name(status.kind, status.name)

        async def look(api: KubernetesApi) -> list[Object | None]:
            places = ((kind, status.name), (RESERVATIONS, name))
            return await asyncio.gather(*(api.get(kind, status.namespace, name) for kind, name in places))

        body, record = self._talk.run(look)
        if body is None or body["metadata"]["uid"] != status.uid:
            raise JobNotFoundError(f"'{status.name}' is gone.", param="name")
        return read_status(body, record_of(body, {} if record is None else {(status.namespace, name): record}))


async def _list(api: KubernetesApi, kind: Any, namespace: str) -> list[Object]:
    """Objects of a kind; none where the kind is not installed."""
    try:
        return (await api.list(kind, namespace))[0]
    except ApiError as error:
        if error.status == 404:
            return []
        raise


def _kind_of(status: JobStatus) -> Any:
    kind = next((kind for kind in JOB_KINDS if kind.kind == status.kind), None)
    return MILLPOND_JOBS if kind is None else kind


def _is_about(event: Object, status: JobStatus) -> bool:
    about: Object = event.get("involvedObject") or {}
    return about.get("uid") == status.uid

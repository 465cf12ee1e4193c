"""Jobs as they come and go on the API server: read, tried, handed to the controller, or refused with a reason.

Owns which object is which job. A job that cannot be is refused before anything of it exists: its fields are read as
strictly as a file's, and the API server is asked whether it would take a pod of each role. Owned by the operator.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from millpond.api.job import JobNotFoundError, SpecError
from millpond.jobs.clusters.kubernetes.client import ApiError, KubernetesApi
from millpond.jobs.clusters.kubernetes.cluster import KubernetesCluster
from millpond.jobs.clusters.kubernetes.documents import JobObject, read_job
from millpond.jobs.clusters.kubernetes.kinds import JOB_KINDS, PODS, RESERVATIONS, Object, find_job_kind
from millpond.jobs.clusters.kubernetes.pods import make_trial_pods
from millpond.jobs.clusters.kubernetes.records import read_record, record_name
from millpond.jobs.clusters.kubernetes.reflector import Reflector
from millpond.jobs.clusters.kubernetes.reports import read_time
from millpond.jobs.clusters.kubernetes.status import is_someone_elses, make_refusal
from millpond.jobs.clusters.kubernetes.store import ObjectStore
from millpond.jobs.resizing import changed_sizes, check_size
from millpond.jobs.state import JobState, make_job_state
from millpond.jobs.store import EventRecord

if TYPE_CHECKING:
    from millpond.jobs.clusters.kubernetes.operator import OperatorSettings

Key = tuple[str, str, str]  # kind, namespace, name
_REFUSALS = (400, 422)
_AT_ONCE = 16
_log = logging.getLogger(__name__)


class Intake:
    """Job objects and the jobs that they are."""

    def __init__(
        self,
        api: KubernetesApi,
        settings: OperatorSettings,
        store: ObjectStore,
        cluster: KubernetesCluster,
        clock: Callable[[], float],
    ) -> None:
        self._api = api
        self._settings = settings
        self._store = store
        self._cluster = cluster
        self._clock = clock
        self._uids: dict[Key, str] = {}
        self._pending: dict[Key, Object | None] = {}
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        self.records = Reflector(api, RESERVATIONS, lambda old, new: None, namespace=settings.namespace)
        self._jobs = tuple(Reflector(api, kind, self._changed, namespace=settings.namespace) for kind in JOB_KINDS)
        self.reflectors = (self.records, *self._jobs)

    def recover(self) -> None:
        """Takes up every job with a record; the others are as good as new."""
        found = {key_of_job(body): body for reflector in self._jobs for body in reflector.objects.values()}
        by_record = {(key[1], record_name(key[0], key[2])): key for key in found}
        states: list[tuple[JobState, Object, bool]] = []
        for place, record in self.records.objects.items():
            state = read_record(record)
            if state is None:
                _log.error("Reservation %s/%s cannot be read and is left as it is", *place)
                continue
            body = found.get(by_record.get(place, ("", "", "")))
            owner: Object = next(iter(record["metadata"].get("ownerReferences") or ()), {})
            is_orphan = body is None or body["metadata"]["uid"] != owner.get("uid")
            if body is None or is_orphan:
                metadata = {"name": state.spec.name, "namespace": state.spec.namespace, "uid": owner.get("uid", "")}
                body = {"apiVersion": owner.get("apiVersion", ""), "kind": owner.get("kind", ""), "metadata": metadata}
            states.append((state, body, is_orphan))
        for state, body, is_orphan in sorted(states, key=lambda found: found[0].created_s):
            self.register(state.uid, JobObject(body, state.spec))
            self._store.submit(state)
            if is_orphan or body["metadata"].get("deletionTimestamp"):
                self._store.ask(state.uid, "delete")
            else:
                self._update(state.uid, body, state, is_news=False)  # it may have changed while nobody looked

    def register(self, uid: str, job: JobObject) -> None:
        """From now on this object is that job."""
        self._uids[key_of_job(job.body)] = uid
        self._cluster.jobs[uid] = job

    def forget(self, uid: str) -> None:
        """The job is over and gone."""
        job = self._cluster.jobs.pop(uid, None)
        if job is not None and self._uids.get(key_of_job(job.body)) == uid:
            del self._uids[key_of_job(job.body)]

    async def take(self, jobs: Mapping[str, JobState]) -> None:
        """Hands over what came since the last call; what could not be tried yet stays."""
        pending, self._pending = self._pending, {}
        in_order = sorted(pending.items(), key=lambda item: _created(item[1]))
        left = await asyncio.gather(*(self._take(key, body, jobs) for key, body in in_order))
        for (key, body), is_left in zip(in_order, left, strict=True):
            if is_left:
                self._pending.setdefault(key, body)

    async def _take(self, key: Key, body: Object | None, jobs: Mapping[str, JobState]) -> bool:
        """Returns whether it has to be looked at again."""
        uid = self._uids.get(key)
        known = self._cluster.jobs.get(uid) if uid is not None else None
        if uid is not None and known is not None:
            is_same = body is not None and body["metadata"]["uid"] == known.body["metadata"]["uid"]
            if body is None or not is_same or body["metadata"].get("deletionTimestamp"):
                if uid in jobs and not jobs[uid].is_deleting:
                    self._store.ask(uid, "delete")
                return body is not None and not is_same  # the next one of that name waits until this one is gone
            is_changed = body["metadata"].get("generation") != known.body["metadata"].get("generation")
            self._cluster.jobs[uid] = JobObject(body, known.spec)
            if is_changed and uid in jobs:
                self._update(uid, body, jobs[uid])
            return False
        if body is None or body["metadata"].get("deletionTimestamp") or is_someone_elses(body):
            return False
        try:
            await self._accept(body)
        except ApiError as error:
            _log.warning("%s %s/%s cannot be tried yet: %s", *key, error)
            self._cluster.changed.set()
            await asyncio.sleep(0.05)
            return True
        return False

    async def _accept(self, body: Object) -> None:
        try:
            job = read_job(body, self._settings.gang_scheduler)
            await self._try_pods(job)
        except SpecError as error:
            await self._refuse(body, error)
            return
        metadata = body["metadata"]
        created_s = read_time(metadata.get("creationTimestamp")) or self._clock()
        state = make_job_state(job.spec, metadata["uid"], created_s)
        if state.cron is not None:
            state.cron.last_s = read_time((body.get("status") or {}).get("lastScheduleTime")) or created_s
            state.cron.runs = self._runs_of(metadata["uid"])
        state.cron_name = (metadata.get("labels") or {}).get("kubedl.io/cron-name", "")
        self.register(state.uid, job)
        self._store.submit(state)

    async def _try_pods(self, job: JobObject) -> None:
        """Asks the API server whether it would take a pod of each role.

        Raises:
            SpecError: It would not.
            ApiError: It could not say.
        """
        for role, pod in zip([role for role in job.spec.roles if role.replicas],
                             make_trial_pods(job, self._cluster.settings), strict=True):  # fmt: skip
            try:
                async with self._at_once:
                    await self._api.create(PODS, pod, dry_run=True)
            except ApiError as error:
                if error.status in _REFUSALS:
                    specs = job.framework.replica_specs
                    path = f"spec.{specs}.{role.name}.template" if specs else "spec.template"
                    raise SpecError(f"{path}: {error.said}", param=path) from None
                if error.status not in (403, 409):  # quota may free up; a pod of that name may go
                    raise

    async def _refuse(self, body: Object, error: SpecError) -> None:
        kind = find_job_kind(body)
        assert kind is not None
        metadata = body["metadata"]
        status = make_refusal(error, self._clock())
        await self._api.patch(kind, metadata["namespace"], metadata["name"], {"status": status}, "status")

    def _update(self, uid: str, body: Object, state: JobState, *, is_news: bool = True) -> None:
        """Takes in what may change of a known job: everything of a cron, and how many replicas roles have."""
        try:
            job = read_job(body, self._settings.gang_scheduler)
            if state.cron is None:
                self._resize(uid, job, state)
            elif job.spec.cron is not None:
                self._cluster.jobs[uid] = job
                state.spec = dataclasses.replace(job.spec)
                if job.spec.cron.suspend != state.cron.is_suspended:
                    self._store.ask(uid, "suspend" if job.spec.cron.suspend else "resume")
        except (SpecError, JobNotFoundError) as error:
            if is_news:
                self._warn(uid, str(error))

    def _resize(self, uid: str, job: JobObject, state: JobState) -> None:
        """Asks for the sizes that the object names.

        Raises:
            SpecError: A role cannot have so many, or more than sizes has changed.
            JobNotFoundError: A role cannot be scaled.
        """
        sizes = changed_sizes(self._cluster.jobs[uid].spec, job.spec)
        if sizes is None:
            raise SpecError("spec: only replicas of roles can change while a job lives.", param="spec")
        if state.is_final or state.is_deleting:
            return
        for role, replicas in sizes.items():
            check_size(job.spec, role, replicas)
        if sizes:
            self._cluster.resize(uid, job)
        for role, replicas in sizes.items():
            self._store.ask(uid, f"scale:{role}={replicas}")

    def _warn(self, uid: str, message: str) -> None:
        event = EventRecord(self._clock(), "Warning", "NotChanged", f"The change has no effect: {message}")
        self._store.add_events([(uid, event)])

    def _runs_of(self, cron_uid: str) -> list[str]:
        """Jobs that a cron made, oldest first."""
        found = [
            body
            for reflector in self._jobs
            for body in reflector.objects.values()
            if any(owner.get("uid") == cron_uid for owner in body["metadata"].get("ownerReferences") or ())
        ]
        return [self._uids.get(key_of_job(body), body["metadata"]["uid"]) for body in sorted(found, key=_created)]

    def _changed(self, old: Object | None, new: Object | None) -> None:
        body = new if new is not None else old
        assert body is not None
        if old is not None and new is not None and not _is_news(old, new):
            return
        self._pending[key_of_job(body)] = new
        self._cluster.changed.set()


def key_of_job(body: Object) -> Key:
    """Kind, namespace and name."""
    return body["kind"], body["metadata"].get("namespace", ""), body["metadata"]["name"]


def _is_news(old: Object, new: Object) -> bool:
    """Whether more has changed than the status, which we write ourselves."""
    watched = ("uid", "generation", "deletionTimestamp", "labels", "annotations")
    return any(old["metadata"].get(name) != new["metadata"].get(name) for name in watched)


def _created(body: Object | None) -> str:
    return str(body["metadata"].get("creationTimestamp", "")) if body is not None else ""

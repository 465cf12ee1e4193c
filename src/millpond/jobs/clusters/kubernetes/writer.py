"""Writes to the API server what the controller decided: records first, statuses and events after.

Owns what was written last. A job whose record could not be written is not saved, and nothing of it may be carried out
until it is. Owned by the operator.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping

from millpond.base.errors import MillpondError
from millpond.jobs.clusters.kubernetes.client import ApiError, KubernetesApi
from millpond.jobs.clusters.kubernetes.cluster import KubernetesCluster
from millpond.jobs.clusters.kubernetes.documents import JobObject, workload_of
from millpond.jobs.clusters.kubernetes.intake import Intake
from millpond.jobs.clusters.kubernetes.kinds import (
    EVENTS,
    MODEL_VERSIONS,
    RESERVATIONS,
    Object,
    find_job_kind,
    owner_of,
)
from millpond.jobs.clusters.kubernetes.records import HELD, make_record, needs_record, record_name
from millpond.jobs.clusters.kubernetes.reports import show_time
from millpond.jobs.clusters.kubernetes.status import make_cron_status, make_status
from millpond.jobs.clusters.kubernetes.store import ObjectStore
from millpond.jobs.state import JobState
from millpond.jobs.store import EventRecord, ModelVersionRecord

_AT_ONCE = 16
_EVENTS_A_TURN = 50
_MAX_MESSAGE = 1024
_log = logging.getLogger(__name__)


class LeadershipLostError(MillpondError):
    """Another operator has written what only the leader writes."""

    code = "leadership_lost"


class Writer:
    """What must be on the API server, and what is."""

    def __init__(
        self, api: KubernetesApi, store: ObjectStore, cluster: KubernetesCluster, intake: Intake, identity: str
    ) -> None:
        self._api = api
        self._store = store
        self._cluster = cluster
        self._intake = intake
        self._identity = identity
        self._unsaved: dict[str, JobState] = {}
        self._made: dict[str, JobState] = {}
        self._records: dict[str, Object] = {}
        self._stale: set[str] = set()
        self._shown: dict[str, Object] = {}
        self._gone: set[str] = set()
        self._versions: list[ModelVersionRecord] = []
        self._at_once = asyncio.Semaphore(_AT_ONCE)

    def is_saved(self, uid: str) -> bool:
        """Whether the job may be acted upon."""
        return uid not in self._unsaved

    async def write(self, jobs: Mapping[str, JobState]) -> bool:
        """Writes records. Returns whether all are written.

        Raises:
            LeadershipLostError: Another operator wrote one.
        """
        changes = self._store.take_changes()
        self._unsaved |= changes.states
        self._made |= changes.made
        self._versions += changes.versions
        self._stale |= changes.explained | set(changes.states)
        for uid in list(self._made):
            if await self._safely(self._make, self._made[uid], jobs):
                del self._made[uid]
        uids = [uid for uid in self._unsaved if uid not in self._made]
        done = await asyncio.gather(*(self._safely(self._save, self._unsaved[uid]) for uid in uids))
        for uid, is_done in zip(uids, done, strict=True):
            if is_done:
                del self._unsaved[uid]
        return not self._unsaved

    async def show(self, jobs: Mapping[str, JobState]) -> bool:
        """Writes statuses, events and versions of models. Returns whether all are written."""
        uids = [uid for uid in self._stale if uid in jobs and uid in self._cluster.jobs]
        crons = {state.uid for state in jobs.values() if state.cron is not None}
        uids += [uid for uid in crons if uid not in uids]  # their status is made of their jobs' statuses
        self._stale &= self._unsaved.keys()
        done = await asyncio.gather(*(self._safely(self._show, jobs[uid], jobs) for uid in uids))
        self._stale |= {uid for uid, is_done in zip(uids, done, strict=True) if not is_done}
        await self._write_events()
        self._versions = [one for one in self._versions if not await self._safely(self._write_version, one)]
        for uid in list(self._gone):
            if not self._cluster.has_work_for(uid):
                self._gone.discard(uid)
                self._intake.forget(uid)
        return not self._stale and not self._versions

    async def _safely(self, doing: Callable[..., Awaitable[bool]], *args: object) -> bool:
        try:
            async with self._at_once:
                return await doing(*args)
        except ApiError as error:
            _log.warning("%s", error)
            return False

    # Records -------------------------------------------------------------------------------------------------

    async def _save(self, state: JobState) -> bool:
        job = self._cluster.jobs.get(state.uid)
        if job is None:
            return True  # nothing of it is on the API server
        if state.deleted_s is not None:
            return await self._erase(state, job)
        if state.cron is not None or not needs_record(state):
            return True
        old = self._records.get(state.uid) or self._read_before(job, state)
        record = make_record(job, state, self._identity, old)
        if old is not None and old["spec"] == record["spec"]:
            self._records[state.uid] = old
            return True
        try:
            written = await (self._api.create if old is None else self._api.replace)(RESERVATIONS, record)
        except ApiError as error:
            if error.status != 409 and not (error.status == 404 and old is not None):
                raise
            return await self._settle(job, state, old)
        self._records[state.uid] = written
        return True

    def _read_before(self, job: JobObject, state: JobState) -> Object | None:
        """The record that an earlier operator wrote, as it was when we took over."""
        found = self._intake.records.objects.get((job.namespace, record_name(job.body["kind"], job.spec.name)))
        return found if found is not None and read_uid(found) == state.uid else None

    async def _settle(self, job: JobObject, state: JobState, old: Object | None) -> bool:
        """Our write was refused: looks at who wrote. Returns False, for another try."""
        name = record_name(job.body["kind"], job.spec.name)
        found = await self._api.get(RESERVATIONS, job.namespace, name)
        if found is None:
            self._records.pop(state.uid, None)
            return False
        if read_uid(found) != state.uid:
            return False  # of an earlier job of that name, which is still leaving
        writer = found["spec"].get("leader", "")
        if writer != self._identity and (old is None or found["spec"] != old["spec"]):
            raise LeadershipLostError(f"{name} was written by {writer or 'nobody'}.", fix="This operator stops.")
        self._records[state.uid] = found
        return False

    async def _erase(self, state: JobState, job: JobObject) -> bool:
        kind = find_job_kind(job.body)
        if kind is not None:
            uid = job.body["metadata"]["uid"]
            await self._api.delete(kind, job.namespace, job.spec.name, uid=uid)
        name = record_name(job.body["kind"], job.spec.name)
        found = await self._api.get(RESERVATIONS, job.namespace, name)
        if found is not None and read_uid(found) == state.uid:
            await self._api.delete(RESERVATIONS, job.namespace, name, uid=found["metadata"]["uid"])
            finalizers = [one for one in found["metadata"].get("finalizers") or () if one != HELD]
            await self._api.patch(RESERVATIONS, job.namespace, name, {"metadata": {"finalizers": finalizers}})
        for held in (self._records, self._shown):
            held.pop(state.uid, None)
        self._gone.add(state.uid)
        return True

    async def _make(self, state: JobState, jobs: Mapping[str, JobState]) -> bool:
        """Creates the object of a job that a cron made."""
        cron = next((job for uid, job in self._cluster.jobs.items() if uid in jobs and jobs[uid].cron is not None
                     and (job.spec.name, job.namespace) == (state.cron_name, state.spec.namespace)), None)  # fmt: skip
        if cron is None:
            self._store.ask(state.uid, "delete")
            return True
        body = make_run_object(cron, state)
        kind = find_job_kind(body)
        assert kind is not None
        try:
            created = await self._api.create(kind, body)
        except ApiError as error:
            found = await self._api.get(kind, cron.namespace, state.spec.name) if error.status == 409 else None
            if found is None:
                raise
            owners = found["metadata"].get("ownerReferences") or ()
            if not any(owner.get("uid") == cron.body["metadata"]["uid"] for owner in owners):
                self._store.ask(state.uid, "delete")  # somebody else's job has the name
                return True
            created = found
        self._intake.register(state.uid, JobObject(created, state.spec))
        return True

    # Statuses and events -------------------------------------------------------------------------------------

    async def _show(self, state: JobState, jobs: Mapping[str, JobState]) -> bool:
        job = self._cluster.jobs.get(state.uid)
        kind = None if job is None else find_job_kind(job.body)
        if job is None or kind is None or state.deleted_s is not None:
            return True
        if state.cron is not None:
            status = make_cron_status(state, self._history(state, jobs))
        else:
            status = make_status(state, self._store.explanations.get(state.uid, {}))
        if self._shown.get(state.uid) != status:
            await self._api.patch(kind, job.namespace, job.spec.name, {"status": status}, "status")
            self._shown[state.uid] = copy.deepcopy(status)
        return True

    def _history(self, cron: JobState, jobs: Mapping[str, JobState]) -> list[Object]:
        assert cron.cron is not None
        runs = []
        for uid in cron.cron.runs:
            job, state = self._cluster.jobs.get(uid), jobs.get(uid)
            if job is not None and state is not None:
                reference = {"apiVersion": job.body["apiVersion"], "kind": job.body["kind"], "name": job.spec.name}
                finished = None if state.finished_s is None else show_time(state.finished_s)
                runs.append({"object": reference, "status": state.phase.value, "created": show_time(state.created_s),
                             "finished": finished})  # fmt: skip
        return runs

    async def _write_events(self) -> None:
        """Events are a courtesy: what cannot be written is dropped."""
        taken = [self._store.events.popleft() for _ in range(min(_EVENTS_A_TURN, len(self._store.events)))]
        await asyncio.gather(*(self._safely(self._write_event, uid, event) for uid, event in taken))

    async def _write_event(self, uid: str, event: EventRecord) -> bool:
        job = self._cluster.jobs.get(uid)
        if job is not None:
            await self._api.create(EVENTS, make_event(job, event))
        return True

    async def _write_version(self, version: ModelVersionRecord) -> bool:
        job = self._cluster.jobs.get(version.uid)
        if job is None:
            return True
        model = workload_of(job.body).get("spec", {}).get("modelVersion") or {}
        spec: Object = {"modelName": version.model, "createdBy": version.created_by or job.spec.name}
        spec |= {"storage": model.get("storage") or {"localStorage": {"path": version.path}}}
        spec |= {key: model[key] for key in ("imageRepo", "imageTag") if model.get(key)}
        metadata = {"name": version.name, "namespace": job.namespace, "labels": {"kubedl.io/model-name": version.model}}
        body = {"apiVersion": MODEL_VERSIONS.api_version, "kind": MODEL_VERSIONS.kind, "metadata": metadata,
                "spec": spec}  # fmt: skip
        try:
            await self._api.create(MODEL_VERSIONS, body)
        except ApiError as error:
            if error.status not in (404, 409):  # the kind is not installed; it was written before
                raise
        return True


def make_run_object(cron: JobObject, state: JobState) -> Object:
    """The object of one run of a cron: what the cron runs, under its own name, without a schedule."""
    workload = copy.deepcopy(workload_of(cron.body))
    metadata = workload.get("metadata") or {}
    labels = (metadata.get("labels") or {}) | {"kubedl.io/cron-name": state.cron_name}
    owner = owner_of(cron.body)
    spec = {key: value for key, value in workload["spec"].items() if key not in ("cronPolicy", "cron")}
    return {
        "apiVersion": workload["apiVersion"],
        "kind": workload["kind"],
        "metadata": {"name": state.spec.name, "namespace": cron.namespace, "labels": labels,
                     "annotations": metadata.get("annotations") or {}, "ownerReferences": [owner]},
        "spec": spec,
    }  # fmt: skip


def make_event(job: JobObject, event: EventRecord) -> Object:
    """An Event about a job."""
    metadata, at = job.body["metadata"], show_time(event.at_s)
    return {
        "apiVersion": EVENTS.api_version,
        "kind": EVENTS.kind,
        "metadata": {"name": f"{job.spec.name}.{uuid.uuid4().hex[:16]}", "namespace": job.namespace},
        "involvedObject": {"apiVersion": job.body["apiVersion"], "kind": job.body["kind"], "name": metadata["name"],
                           "namespace": job.namespace, "uid": metadata["uid"]},
        "type": event.kind,
        "reason": event.reason,
        "message": event.message[:_MAX_MESSAGE],
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
        "source": {"component": "millpond-operator"},
    }  # fmt: skip


def read_uid(record: Object) -> str:
    """The job that a Reservation is of."""
    labels: dict[str, str] = record["metadata"].get("labels") or {}
    return labels.get("jobs.millpond.io/uid", "")

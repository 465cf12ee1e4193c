"""From what the API server has of a job to the status that users see.

A job with a record of the operator's is told by the function that serves the local cluster; one without by what its
object says. Pure. Called by `jobs_client`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from millpond.api.job import Condition, JobPhase, JobSpec, JobStatus, SpecError
from millpond.jobs.clusters.kubernetes.documents import read_job
from millpond.jobs.clusters.kubernetes.kinds import Object
from millpond.jobs.clusters.kubernetes.records import read_record, record_name
from millpond.jobs.clusters.kubernetes.reports import read_time
from millpond.jobs.state import make_job_state
from millpond.jobs.status import job_status


@dataclass(frozen=True, slots=True)
class ClaimStatus:
    """A volume claim, as `data list` shows it; who owns it and what it is, its annotations say."""

    name: str
    access: str
    description: str
    owner: str
    created_s: float


def read_claim(body: Object) -> ClaimStatus:
    """A PersistentVolumeClaim."""
    metadata, said = body["metadata"], body["metadata"].get("annotations") or {}
    access = ",".join((body.get("spec") or {}).get("accessModes") or ())
    created_s = read_time(metadata.get("creationTimestamp")) or 0.0
    return ClaimStatus(metadata["name"], access, said.get("description", ""), said.get("owner", ""), created_s)


def record_of(body: Object, records: dict[tuple[str, str], Object]) -> Object | None:
    """The Reservation of a job, among those by namespace and name; one of an earlier job of that name is none."""
    metadata = body["metadata"]
    found = records.get((metadata.get("namespace", ""), record_name(body["kind"], metadata["name"])))
    owners = [] if found is None else found["metadata"].get("ownerReferences") or []
    return found if any(owner.get("uid") == metadata.get("uid") for owner in owners) else None


def read_status(body: Object, record: Object | None) -> JobStatus:
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
        state.cron_name = (body["metadata"].get("labels") or {}).get("kubedl.io/cron-name", "")
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

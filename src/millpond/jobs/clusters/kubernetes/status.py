"""A job's status subresource: KubeDL's fields, and beside them why a job waits. Pure; called by the operator."""

from __future__ import annotations

from collections.abc import Mapping

from millpond.api.job import JobPhase, JobStatus, ReplicaPhase, SpecError
from millpond.jobs.clusters.kubernetes.kinds import Object
from millpond.jobs.clusters.kubernetes.reports import show_time
from millpond.jobs.exit_codes import RETRYABLE_REASONS
from millpond.jobs.state import CODE_SYNC, TENSORBOARD, JobState
from millpond.jobs.status import job_status

_MAX_TEXT = 4096


def make_status(state: JobState, explanation: Mapping[str, object]) -> Object:
    """The status of a training job. Fields that are gone are null, because the status is merged."""
    status = job_status(state, explanation)
    own = _notebook(state, status) if state.spec.framework == "notebook" else {}
    return own | {
        "conditions": [
            {
                "type": condition.type.value,
                "status": "True" if condition.is_true else "False",
                "reason": condition.reason,
                "message": condition.message[:_MAX_TEXT],
                "lastUpdateTime": show_time(condition.since_s),
                "lastTransitionTime": show_time(condition.since_s),
            }
            for condition in status.conditions
        ],
        "phase": status.phase.value,
        "replicaStatuses": _replica_statuses(status),
        "startTime": None if status.started_s is None else show_time(status.started_s),
        "completionTime": None if status.finished_s is None else show_time(status.finished_s),
        "modelVersionName": status.model_version or None,
        "restarts": status.restarts,
        "waiting": status.waiting[:_MAX_TEXT] or None,
        "explanation": status.explanation or None,
        "notes": list(status.notes) or None,
    }


def _notebook(state: JobState, status: JobStatus) -> Object:
    """What KubeDL says about a Notebook."""
    condition = "Terminated" if status.phase.is_final else "Running" if status.phase is JobPhase.RUNNING else "Created"
    last = status.conditions[-1]
    (role,) = state.spec.roles
    host = f"{state.spec.name}-notebook-0.{state.spec.namespace}.svc"
    return {
        "condition": condition,
        "message": last.message[:_MAX_TEXT],
        "lastTransitionTime": show_time(last.since_s),
        "url": f"http://{host}:{role.port or state.framework.port}",
    }


def _replica_statuses(status: JobStatus) -> Object:
    found: dict[str, dict[str, int]] = {}
    for replica in status.replicas:
        if replica.role in (CODE_SYNC, TENSORBOARD):
            continue
        counts = found.setdefault(replica.role, {"active": 0, "succeeded": 0, "failed": 0, "evicted": 0})
        match replica.phase:
            case ReplicaPhase.RUNNING | ReplicaPhase.STARTING:
                counts["active"] += 1
            case ReplicaPhase.SUCCEEDED:
                counts["succeeded"] += 1
            case ReplicaPhase.FAILED:
                counts["failed"] += 1
                counts["evicted"] += replica.message in RETRYABLE_REASONS
            case ReplicaPhase.PENDING:
                pass
    return found


def make_refusal(error: SpecError, now_s: float) -> Object:
    """The status of an object that asks for something that cannot be: one condition that says where."""
    now = show_time(now_s)
    condition = {"type": JobPhase.FAILED.value, "status": "True", "reason": "InvalidSpec",
                 "message": str(error)[:_MAX_TEXT], "lastUpdateTime": now, "lastTransitionTime": now}  # fmt: skip
    return {"conditions": [condition], "phase": JobPhase.FAILED.value, "completionTime": now, "field": error.param}


def is_someone_elses(body: Object) -> bool:
    """Whether a job without a record has a history already: it ended long ago, or another operator runs it."""
    own = (JobPhase.CREATED.value, JobPhase.QUEUING.value)
    conditions: list[Object] = (body.get("status") or {}).get("conditions") or []
    return any(condition.get("type") not in own for condition in conditions)


def make_cron_status(state: JobState, runs: list[Object]) -> Object:
    """The status of a Cron: KubeDL's fields."""
    assert state.cron is not None
    return {
        "active": [run["object"] for run in runs if run["status"] not in ("Succeeded", "Failed")],
        "history": runs,
        "lastScheduleTime": show_time(state.cron.last_s),
    }

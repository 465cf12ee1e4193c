"""One function that says how a job goes, for list, get, logs, REST and pages alike. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from millpond.api.job import JobPhase, JobStatus, ReplicaPhase, ReplicaStatus
from millpond.jobs.state import CODE_SYNC, TENSORBOARD, JobState, ReplicaState
from millpond.jobs.transitions import run_name


def job_status(state: JobState, explanation: Mapping[str, object] | None = None) -> JobStatus:
    """How the job goes."""
    spec = state.spec
    waits = state.phase in (JobPhase.CREATED, JobPhase.QUEUING) and state.cron is None
    board = state.helpers.get(TENSORBOARD)
    is_board_up = board is not None and board.phase is ReplicaPhase.RUNNING
    return JobStatus(
        uid=state.uid,
        name=spec.name,
        namespace=spec.namespace,
        kind="Cron" if state.cron is not None else state.framework.kind,
        framework=spec.framework,
        phase=state.phase,
        conditions=tuple(state.conditions),
        replicas=tuple(_replica_status(state, replica) for replica in state.all_runs),
        tenant=spec.tenant,
        priority=spec.priority,
        created_s=state.created_s,
        started_s=state.started_s,
        finished_s=state.finished_s,
        deleted_s=state.deleted_s,
        requested_devices=spec.num_devices,
        allocated_devices=sum(len(replica.device_ids) for replica in state.live),
        restarts=state.restarts,
        is_stopping=(state.is_final or bool(state.eviction)) and bool(state.live),
        waiting=_waiting(state, explanation or {}) if waits else "",
        explanation=dict(explanation or {}) if waits else {},
        model_version=state.model_version,
        tensorboard_url=f"http://127.0.0.1:{board.port}/" if board is not None and is_board_up else "",
        cron_name=state.cron_name,
        notes=spec.notes,
    )


def _waiting(state: JobState, explanation: Mapping[str, object]) -> str:
    """Why it does not run, in one line: the scheduler's message, what is short, and the place in the queue."""
    if state.phase is JobPhase.CREATED:
        return "The controller has not seen it yet."
    if state.eviction:
        return "It leaves its place and goes back to the queue."
    if state.reservation is not None:
        code = state.helpers.get(CODE_SYNC)
        is_fetching = code is not None and code.phase is not ReplicaPhase.SUCCEEDED
        return "Its code is being fetched." if is_fetching else "It has a place and is being started."
    parts = [str(explanation.get("message", ""))]
    shortages = explanation.get("shortages")
    for shortage in shortages if isinstance(shortages, list) else ():
        if shortage["detail"] not in parts[0]:
            parts.append(shortage["detail"])
    if explanation.get("position"):
        parts.append(f"Place {explanation['position']} in the queue.")
    return " ".join(part for part in parts if part) or "It waits in the queue."


def _replica_status(state: JobState, replica: ReplicaState) -> ReplicaStatus:
    role = state.spec.role(replica.role)
    return ReplicaStatus(
        name=run_name(state, replica),
        role=replica.role,
        index=replica.index,
        phase=replica.phase,
        node=replica.node,
        device_ids=tuple(str(device) for device in replica.device_ids),
        rank=replica.rank,
        pid=replica.pid,
        restarts=replica.restarts,
        exit_code=replica.exit_code,
        started_s=replica.started_s,
        finished_s=replica.finished_s,
        is_chief=state.framework.is_chief(state.spec, replica.role, replica.index),
        devices=role.resources.devices if role is not None else 0,
        message=replica.message,
    )

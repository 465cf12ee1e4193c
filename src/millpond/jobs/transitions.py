"""The life of a job as a state machine: events change a `JobState`.

No I/O, no clock, no randomness: time is passed in. What must be done about the state is said by `instructions`. Called
by the controller, which saves the state before it carries anything out.
"""

from __future__ import annotations

from collections.abc import Sequence

from millpond.api.job import Condition, JobPhase, ReplicaPhase
from millpond.jobs.clusters.base import RunReport
from millpond.jobs.exit_codes import should_restart
from millpond.jobs.resizing import ask_size
from millpond.jobs.scheduling.types import Placements
from millpond.jobs.state import CODE_SYNC, JobState, ReplicaState, ReservationState

_BACKOFF_FIRST_S = 0.5
_BACKOFF_LAST_S = 60.0


def reserve(state: JobState, epoch: int, placements: Placements, expires_s: float, ports: Sequence[int]) -> None:
    """The scheduler holds cells for every role. `ports`: one for each replica, in order; 0: its role's own."""
    held = {role: tuple(found) for role, found in placements.items()}
    state.reservation = ReservationState(epoch, held, expires_s)
    for role, found in held.items():
        for placement in found:
            for offset in range(placement.num_ranks):
                replica = state.replica(role, placement.rank + offset)
                if replica is None:
                    continue
                replica.node = placement.node
                replica.group, replica.group_size = placement.device_ids, placement.num_ranks
                is_group = placement.num_ranks > 1
                replica.device_ids = placement.device_ids[offset : offset + 1] if is_group else placement.device_ids
                replica.rank = placement.rank + offset if is_group else None
                replica.local_rank = offset
    for replica, port in zip(state.replicas, ports, strict=True):
        asked = state.spec.role(replica.role)
        replica.port = port or (asked.port if asked is not None and asked.port is not None else 0)


def release(state: JobState, epoch: int, role: str) -> None:
    """The processes of a role may start."""
    if state.reservation is not None and state.reservation.epoch == epoch:
        state.reservation.released.add(role)


def evict(state: JobState, epoch: int, reason: str, now_s: float, *, must_stop: bool = True) -> None:
    """The scheduler takes the reservation back; the job returns to the queue."""
    if state.reservation is None or state.reservation.epoch != epoch:
        return
    state.eviction, state.eviction_epoch = reason, epoch
    if state.is_final:
        return  # what its clean-up policy left running must go now
    set_condition(state, JobPhase.QUEUING, "JobEvicted", reason, now_s)
    if not must_stop and not state.live:
        forget_reservation(state)


def resize(state: JobState, role: str, replicas: int, now_s: float) -> bool:
    """A role shall have so many replicas: the job leaves its place and starts again with them, all or none.

    Returns whether that is another number than before.
    """
    reason = ask_size(state, role, replicas)
    if reason and state.reservation is not None and not state.eviction:
        state.eviction, state.eviction_epoch = reason, state.reservation.epoch
        set_condition(state, JobPhase.QUEUING, "JobResized", reason, now_s)
    return bool(reason)


def enqueue(state: JobState, now_s: float) -> None:
    """The scheduler knows the job."""
    if state.phase is JobPhase.CREATED:
        set_condition(state, JobPhase.QUEUING, "JobEnqueued", "Waits for its gang's resources.", now_s)


def take_report(state: JobState, report: RunReport) -> bool:
    """A cluster says that a run started or ended. Returns whether that is news; what is late or repeated is not."""
    run = report.id
    replica = state.replica(run.role, run.index)
    if replica is None or replica.attempt != run.attempt:
        return False
    if report.exit_code is not None:
        return replica.is_live and _take_end(state, replica, report.exit_code, report)
    if replica.phase is not ReplicaPhase.STARTING:
        return False
    replica.phase, replica.pid, replica.started_s = ReplicaPhase.RUNNING, report.pid, report.at_s
    if run.role not in state.helpers and not state.is_final and not state.eviction:
        state.started_s = report.at_s if state.started_s is None else state.started_s
        waiting = any(other.phase is ReplicaPhase.PENDING and other.attempt for other in state.replicas)
        if not waiting and state.phase is not JobPhase.RUNNING:
            set_condition(state, JobPhase.RUNNING, "JobRunning", f"Job {state.spec.name} is running.", report.at_s)
    return True


def _take_end(state: JobState, replica: ReplicaState, exit_code: int, report: RunReport) -> bool:
    was_stopped = replica.stop_sent_s is not None
    replica.exit_code, replica.finished_s, replica.pid, replica.stop_sent_s = exit_code, report.at_s, None, None
    replica.message, replica.is_forced = report.reason, False
    replica.phase = ReplicaPhase.SUCCEEDED if exit_code == 0 else ReplicaPhase.FAILED
    if replica.role in state.helpers:
        _helper_ended(state, replica, report.at_s)
    elif not (state.is_final or state.eviction or was_stopped):
        _replica_ended(state, replica, exit_code, report)
    return True


def delete(state: JobState, now_s: float, reason: str = "JobDeleted") -> None:
    """The job is given up: stop everything, keep the record."""
    if not state.is_deleting:
        state.is_deleting = True
        if not state.is_final:
            finish(state, JobPhase.FAILED, reason, "The job was deleted before it ended.", now_s)


def set_condition(state: JobState, phase: JobPhase, reason: str, message: str, now_s: float) -> None:
    """Moves the job to a phase. Running and Restarting exclude each other; an end is the end."""
    if state.is_final:
        return
    if phase in (JobPhase.RUNNING, JobPhase.RESTARTING, JobPhase.QUEUING) or phase.is_final:
        state.conditions = [
            _over(old) if old.type in (JobPhase.RUNNING, JobPhase.RESTARTING, JobPhase.QUEUING) else old
            for old in state.conditions
        ]
    state.conditions = [old for old in state.conditions if old.type is not phase]
    state.conditions.append(Condition(phase, reason, message, now_s))
    state.phase = phase


def _over(condition: Condition) -> Condition:
    return Condition(condition.type, condition.reason, condition.message, condition.since_s, is_true=False)


def finish(state: JobState, phase: JobPhase, reason: str, message: str, now_s: float) -> None:
    """The job is over."""
    set_condition(state, phase, reason, message, now_s)
    state.finished_s = now_s


def _helper_ended(state: JobState, helper: ReplicaState, now_s: float) -> None:
    if helper.role != CODE_SYNC or helper.phase is ReplicaPhase.SUCCEEDED or state.is_final:
        return
    assert state.spec.code is not None
    if helper.restarts >= state.spec.code.max_failures:
        finish(state, JobPhase.FAILED, "CodeSyncFailed", "The code could not be fetched; see its log.", now_s)
    else:
        _again(helper, now_s)


def _replica_ended(state: JobState, replica: ReplicaState, exit_code: int, report: RunReport) -> None:
    now_s, reason = report.at_s, report.reason
    role = state.spec.role(replica.role)
    assert role is not None
    assert role.restart is not None
    name = run_name(state, replica)
    if should_restart(role.restart, exit_code, reason):
        limit = state.spec.backoff_limit
        if limit is not None and state.restarts >= limit:
            message = f"{name} ended with code {exit_code} after {state.restarts} restarts of the job."
            finish(state, JobPhase.FAILED, "BackoffLimitExceeded", message, now_s)
            return
        state.restarts += 1
        _again(replica, now_s)
        set_condition(
            state, JobPhase.RESTARTING, "JobRestarting", f"{name} ended with code {exit_code} and restarts.", now_s
        )
    elif state.framework.succeeded(state.running_spec, state.phase_of):
        finish(state, JobPhase.SUCCEEDED, "JobSucceeded", f"Job {state.spec.name} succeeded.", now_s)
    elif replica.phase is ReplicaPhase.FAILED and not _can_still_succeed(state):
        because = f" ({reason})" if reason else ""
        finish(state, JobPhase.FAILED, "JobFailed", f"{name} ended with code {exit_code}{because}.", now_s)
    elif all(other.has_ended for other in state.replicas if other.node):
        finish(state, JobPhase.FAILED, "JobFailed", "All replicas ended and the job did not succeed.", now_s)


def _can_still_succeed(state: JobState) -> bool:
    """With a framework that tolerates failures: would it be a success if all that is left ended well?"""
    if not state.framework.tolerates_failures:
        return False

    def hopeful(role: str, index: int) -> ReplicaPhase:
        phase = state.phase_of(role, index)
        return phase if phase is ReplicaPhase.FAILED else ReplicaPhase.SUCCEEDED

    return state.framework.succeeded(state.running_spec, hopeful)


def _again(replica: ReplicaState, now_s: float) -> None:
    wait = min(_BACKOFF_FIRST_S * 2 ** min(replica.restarts, 16), _BACKOFF_LAST_S)
    replica.restarts += 1
    replica.phase, replica.not_before_s = ReplicaPhase.PENDING, now_s + wait


def forget_reservation(state: JobState) -> None:
    """The job holds nothing any more; its replicas wait for other places."""
    state.reservation, state.eviction = None, ""
    for replica in state.replicas:
        replica.phase, replica.node, replica.device_ids, replica.group = ReplicaPhase.PENDING, "", (), ()
        replica.not_before_s, replica.rank, replica.exit_code = 0.0, None, None


def run_name(state: JobState, replica: ReplicaState) -> str:
    """The name of a replica: job-role-index, in small letters."""
    name = f"{state.spec.name}-{replica.role.lower()}"
    return name if replica.role in state.helpers else f"{name}-{replica.index}"

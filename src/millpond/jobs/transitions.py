"""The life of a job as a state machine: events change a `JobState`, `plan` says what must be done about it.

No I/O, no clock, no randomness: time is passed in. `plan` looks at the state alone, so that it can be called again at
any time, also after a crash, and asks for what is still missing. Called by the controller, which saves the state before
it carries out the instructions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from millpond.api.job import CleanPolicy, Condition, JobPhase, ReplicaPhase
from millpond.jobs.clusters.base import RunReport
from millpond.jobs.exit_codes import should_restart
from millpond.jobs.resizing import ask_size, take_size
from millpond.jobs.runs import gang_request
from millpond.jobs.scheduling.types import (
    Cancelled,
    Event,
    Evicted,
    Finished,
    Phase,
    Placements,
    Started,
    StartFailed,
    Submitted,
)
from millpond.jobs.state import CODE_SYNC, TENSORBOARD, JobState, ReplicaState, ReservationState

STOP_GRACE_S = 10.0
_BACKOFF_FIRST_S = 0.5
_BACKOFF_LAST_S = 60.0
_STOP_AGAIN_S = 1.0


@dataclass(frozen=True, slots=True)
class StartRun:
    """Start this attempt of a replica; an attempt that was started already is left as it is."""

    role: str
    index: int
    attempt: int


@dataclass(frozen=True, slots=True)
class StopRun:
    """Ask a replica's processes to end, or (`force`) end them."""

    role: str
    index: int
    attempt: int
    force: bool


@dataclass(frozen=True, slots=True)
class Tell:
    """Pass an event on to the scheduler."""

    event: Event


@dataclass(frozen=True, slots=True)
class RemoveRuns:
    """Remove logs and directories of all replicas."""


@dataclass(frozen=True, slots=True)
class MakeModelVersion:
    """Write down the version of a model that the job left behind."""


Instruction = StartRun | StopRun | Tell | RemoveRuns | MakeModelVersion


# Events ----------------------------------------------------------------------------------------------------------


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
        _forget_reservation(state)


def resize(state: JobState, role: str, replicas: int, now_s: float) -> None:
    """A role shall have so many replicas: the job leaves its place and starts again with them, all or none."""
    reason = ask_size(state, role, replicas)
    if reason and state.reservation is not None and not state.eviction:
        state.eviction, state.eviction_epoch = reason, state.reservation.epoch
        set_condition(state, JobPhase.QUEUING, "JobResized", reason, now_s)


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
            _finish(state, JobPhase.FAILED, reason, "The job was deleted before it ended.", now_s)


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


def _finish(state: JobState, phase: JobPhase, reason: str, message: str, now_s: float) -> None:
    set_condition(state, phase, reason, message, now_s)
    state.finished_s = now_s


def _helper_ended(state: JobState, helper: ReplicaState, now_s: float) -> None:
    if helper.role != CODE_SYNC or helper.phase is ReplicaPhase.SUCCEEDED or state.is_final:
        return
    assert state.spec.code is not None
    if helper.restarts >= state.spec.code.max_failures:
        _finish(state, JobPhase.FAILED, "CodeSyncFailed", "The code could not be fetched; see its log.", now_s)
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
            _finish(state, JobPhase.FAILED, "BackoffLimitExceeded", message, now_s)
            return
        state.restarts += 1
        _again(replica, now_s)
        set_condition(
            state, JobPhase.RESTARTING, "JobRestarting", f"{name} ended with code {exit_code} and restarts.", now_s
        )
    elif state.framework.succeeded(state.running_spec, state.phase_of):
        _finish(state, JobPhase.SUCCEEDED, "JobSucceeded", f"Job {state.spec.name} succeeded.", now_s)
    elif replica.phase is ReplicaPhase.FAILED and not _can_still_succeed(state):
        because = f" ({reason})" if reason else ""
        _finish(state, JobPhase.FAILED, "JobFailed", f"{name} ended with code {exit_code}{because}.", now_s)
    elif all(other.has_ended for other in state.replicas if other.node):
        _finish(state, JobPhase.FAILED, "JobFailed", "All replicas ended and the job did not succeed.", now_s)


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


def _forget_reservation(state: JobState) -> None:
    state.reservation, state.eviction = None, ""
    for replica in state.replicas:
        replica.phase, replica.node, replica.device_ids, replica.group = ReplicaPhase.PENDING, "", (), ()
        replica.not_before_s, replica.rank, replica.exit_code = 0.0, None, None


def run_name(state: JobState, replica: ReplicaState) -> str:
    """The name of a replica: job-role-index, in small letters."""
    name = f"{state.spec.name}-{replica.role.lower()}"
    return name if replica.role in state.helpers else f"{name}-{replica.index}"


# What must be done -----------------------------------------------------------------------------------------------


def plan(state: JobState, now_s: float) -> list[Instruction]:
    """What is missing between the state as it should be and as it is. Marks in the state what it asks for."""
    if state.deleted_s is not None:
        return []
    if state.cron is not None:
        if state.is_deleting:
            state.deleted_s = now_s
        return []
    _check_times(state, now_s)
    if state.is_final:
        return _plan_end(state, now_s)
    if state.eviction:
        return _plan_eviction(state, now_s)
    if state.resize and state.reservation is None:
        take_size(state)
        return [Tell(Submitted(gang_request(state), state.eviction_epoch))]
    return [*_plan_starts(state, now_s), *_plan_progress(state, now_s)]


def next_time(state: JobState) -> float | None:
    """When `plan` should be called again although nothing happens."""
    times = []
    if state.spec.ttl_s is not None and state.finished_s is not None and not state.is_deleting:
        times.append(state.finished_s + state.spec.ttl_s)
    if state.spec.active_deadline_s is not None and state.started_s is not None and not state.is_final:
        times.append(state.started_s + state.spec.active_deadline_s)
    board = state.helpers.get(TENSORBOARD)
    if board is not None and board.is_live and state.spec.tensorboard is not None and state.finished_s is not None:
        times.append(state.finished_s + state.spec.tensorboard.ttl_s)
    for run in state.all_runs:
        if run.phase is ReplicaPhase.PENDING and run.not_before_s and not state.is_final:
            times.append(run.not_before_s)
        if run.is_live and run.stop_sent_s is not None:
            times.append(run.stop_sent_s + _STOP_AGAIN_S)
    return min(times, default=None)


def _check_times(state: JobState, now_s: float) -> None:
    deadline, ttl = state.spec.active_deadline_s, state.spec.ttl_s
    if deadline is not None and state.started_s is not None and now_s >= state.started_s + deadline:
        message = f"The job ran for longer than {deadline:g} s."
        if not state.is_final:
            _finish(state, JobPhase.FAILED, "DeadlineExceeded", message, now_s)
    if ttl is not None and state.finished_s is not None and now_s >= state.finished_s + ttl:
        state.is_deleting = True


def _plan_starts(state: JobState, now_s: float) -> list[Instruction]:
    reservation = state.reservation
    if reservation is None:
        return []
    code = state.helpers.get(CODE_SYNC)
    if code is not None and code.phase is not ReplicaPhase.SUCCEEDED:
        return _start(code, now_s)
    found: list[Instruction] = []
    for replica in state.replicas:
        if replica.role in reservation.released and replica.node:
            found += _start(replica, now_s)
    board = state.helpers.get(TENSORBOARD)
    if board is not None and board.attempt == 0 and state.started_s is not None:
        found += _start(board, now_s)
    return found


def _start(replica: ReplicaState, now_s: float) -> list[Instruction]:
    if replica.phase is not ReplicaPhase.PENDING or now_s < replica.not_before_s:
        return []
    replica.phase, replica.attempt = ReplicaPhase.STARTING, replica.attempt + 1
    replica.exit_code, replica.finished_s, replica.message = None, None, ""
    return [StartRun(replica.role, replica.index, replica.attempt)]


def _plan_progress(state: JobState, now_s: float) -> list[Instruction]:
    """Tells the scheduler how far each role has come."""
    reservation = state.reservation
    found: list[Instruction] = []
    if reservation is None:
        return found
    for role in state.spec.roles:
        placed = [r for r in state.replicas if r.role == role.name and r.node]
        is_up = all(r.phase in (ReplicaPhase.RUNNING, ReplicaPhase.SUCCEEDED, ReplicaPhase.FAILED) for r in placed)
        if is_up and role.name in reservation.released and role.name not in reservation.running:
            reservation.running.add(role.name)
            found.append(Tell(Started(state.uid, reservation.epoch, role.name, Phase.RUNNING)))
        is_done = all(r.phase is ReplicaPhase.SUCCEEDED for r in placed)
        if is_done and role.name in reservation.running and role.name not in reservation.succeeded:
            reservation.succeeded.add(role.name)
            found.append(Tell(Started(state.uid, reservation.epoch, role.name, Phase.SUCCEEDED)))
    if reservation.started_s is None and len(reservation.running) == len(state.spec.roles):
        reservation.started_s = now_s
    return found


def _stop(replica: ReplicaState, now_s: float) -> list[Instruction]:
    """Asks politely, then again with force when the grace is over."""
    if not replica.is_live:
        return []
    if replica.stop_sent_s is None:
        replica.stop_sent_s = now_s
        replica.not_before_s = now_s + STOP_GRACE_S
    elif now_s < replica.stop_sent_s + _STOP_AGAIN_S:
        return []
    else:
        replica.stop_sent_s = now_s
        replica.is_forced = now_s >= replica.not_before_s
    return [StopRun(replica.role, replica.index, replica.attempt, replica.is_forced)]


def _plan_eviction(state: JobState, now_s: float) -> list[Instruction]:
    code = state.helpers.get(CODE_SYNC)
    leaving = [*state.live, *([code] if code is not None and code.is_live else [])]
    if leaving:
        return [step for replica in leaving for step in _stop(replica, now_s)]
    epoch = state.eviction_epoch
    if code is not None and code.phase is ReplicaPhase.FAILED:
        code.phase = ReplicaPhase.PENDING
    _forget_reservation(state)
    if not state.resize:
        return [Tell(Evicted(state.uid, epoch))]
    take_size(state)
    # The scheduler did not ask it to leave: it takes the place back first, then the new size.
    return [Tell(StartFailed(state.uid, epoch, "resized")), Tell(Submitted(gang_request(state), epoch))]


def _plan_end(state: JobState, now_s: float) -> list[Instruction]:
    found: list[Instruction] = []
    stops_all = state.is_deleting or bool(state.eviction) or state.spec.clean_policy is not CleanPolicy.NONE
    spec, board = state.spec.tensorboard, state.helpers.get(TENSORBOARD)
    is_board_over = spec is None or state.finished_s is None or now_s >= state.finished_s + spec.ttl_s
    for replica in state.replicas if stops_all else ():
        found += _stop(replica, now_s)
    for helper in state.helpers.values():
        if helper is not board or is_board_over or state.is_deleting:
            found += _stop(helper, now_s)
    if state.phase is JobPhase.SUCCEEDED and state.spec.model_version is not None and not state.model_version:
        state.model_version = f"mv-{state.spec.name}-{state.uid[:5]}"
        found.append(MakeModelVersion())
    if not state.live and not state.has_left:
        state.has_left = True
        epoch = state.reservation.epoch if state.reservation is not None else 0
        is_success = state.phase is JobPhase.SUCCEEDED
        left = Finished(state.uid, epoch, is_success) if state.reservation is not None else Cancelled(state.uid)
        found.append(Tell(left))
        if state.spec.clean_policy is CleanPolicy.ALL and not state.is_deleting:
            found.append(RemoveRuns())
    if state.is_deleting and state.has_left and not any(run.is_live for run in state.all_runs):
        state.deleted_s = now_s
        found.append(RemoveRuns())
    return found

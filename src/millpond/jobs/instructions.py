"""What must be done about a job: `plan` compares its state as it should be with the state as it is.

`plan` looks at the state alone, so that it can be called again at any time, also after a crash, and asks for what is
still missing. No I/O, no clock: time is passed in. Called by the controller, which saves the state before it carries
out the instructions.
"""

from __future__ import annotations

from dataclasses import dataclass

from millpond.api.job import CleanPolicy, JobPhase, ReplicaPhase
from millpond.jobs.resizing import take_size
from millpond.jobs.runs import gang_request
from millpond.jobs.scheduling.types import Cancelled, Event, Evicted, Finished, Phase, Started, StartFailed, Submitted
from millpond.jobs.state import CODE_SYNC, TENSORBOARD, JobState, ReplicaState
from millpond.jobs.transitions import finish, forget_reservation

STOP_GRACE_S = 10.0
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
            finish(state, JobPhase.FAILED, "DeadlineExceeded", message, now_s)
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
    forget_reservation(state)
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

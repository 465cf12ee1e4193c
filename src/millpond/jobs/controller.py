"""The controller: brings jobs from what they are to what they should be, cycle by cycle.

Owns the live jobs and the scheduler. A cycle takes in wishes, reports and time; lets `transitions` and the scheduler
decide; saves everything in one transaction; and only then carries it out. So a controller may die at any line: the next
one loads, asks the cluster what became of each run, and goes on. Called by `jobs.service`, one a store.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from millpond.api.job import Concurrency, JobExistsError, JobPhase, JobSpec, ReplicaPhase
from millpond.base.errors import MillpondError
from millpond.jobs import cron_runs, instructions, transitions
from millpond.jobs.clusters.base import Cluster, RunId, RunReport
from millpond.jobs.instructions import Instruction, MakeModelVersion, RemoveRuns, StartRun, StopRun, Tell
from millpond.jobs.runs import gang_request, make_run
from millpond.jobs.scheduling.scheduler import Scheduler
from millpond.jobs.scheduling.types import (
    Decision,
    Event,
    Expire,
    NodeCordoned,
    NodeJoined,
    NodeLost,
    Preempt,
    Reclaim,
    Release,
    Reserve,
    Restored,
    Submitted,
    TenantChanged,
    TenantRemoved,
    TenantSpec,
)
from millpond.jobs.state import TENSORBOARD, JobState, make_job_state
from millpond.jobs.store import ControllerStore, EventRecord, ModelVersionRecord

_MAX_ROUNDS = 1000  # decisions lead to instructions and those to decisions; it ends long before
_EXPLAINED_JOBS = 200
_BOARD_PORT = 6006
_STEP_EVERY_S = 5.0  # reservations expire and better shapes become due by time alone


@dataclass(frozen=True, slots=True)
class ControllerParts:
    """What a controller stands on."""

    store: ControllerStore
    cluster: Cluster
    scheduler: Scheduler
    clock: Callable[[], float]
    make_uid: Callable[[], str]
    tenants: tuple[TenantSpec, ...] = ()


class Controller:
    """Owns the live jobs of one store."""

    def __init__(self, parts: ControllerParts) -> None:
        self._store = parts.store
        self._cluster = parts.cluster
        self._scheduler = parts.scheduler
        self._clock = parts.clock
        self._make_uid = parts.make_uid
        self._tenants = parts.tenants
        self._jobs: dict[str, JobState] = {}
        self._dirty: dict[str, None] = {}
        self._new: list[JobState] = []
        self._events: list[tuple[str, EventRecord]] = []
        self._versions: list[ModelVersionRecord] = []
        self._todo: list[tuple[JobState, Instruction]] = []
        self._explained: dict[str, dict[str, object]] = {}
        self._last_number = 0
        self._next_step_s = 0.0
        self._is_changed = False

    @property
    def jobs(self) -> dict[str, JobState]:
        """The live jobs by uid."""
        return self._jobs

    def recover(self) -> None:
        """Takes up the jobs of an earlier controller. Call once, before the first cycle."""
        now_s = self._clock()
        for tenant in self._tenants:
            self._tell(TenantChanged(tenant), now_s)
        for node in self._cluster.nodes():
            self._tell(NodeJoined(node), now_s)
        for record in self._store.load():
            self._last_number = max(self._last_number, record.number)
            self._adopt(record.state, now_s)

    def cycle(self) -> None:
        """One round: take in, decide, save, carry out."""
        now_s = self._clock()
        self._take_new(now_s)
        granted = self._take_wishes(now_s)
        for report in self._cluster.poll():
            self._take_report(report)
        self._make_cron_jobs(now_s)
        self._decide(now_s)
        self._save(granted, now_s)
        self._carry_out()

    def tell(self, event: NodeJoined | NodeLost | NodeCordoned | TenantChanged | TenantRemoved) -> None:
        """News about the machines and the tenants, while it runs."""
        self._tell(event, self._clock())

    @property
    def is_idle(self) -> bool:
        """Whether nothing lives that needs a controller: no job that runs or waits, no cron, no TTL to come."""
        return all(
            state.is_final and state.has_left and not state.is_deleting and instructions.next_time(state) is None
            for state in self._jobs.values()
        )

    def next_time(self) -> float | None:
        """When the next cycle is due although nothing happens."""
        times = [instructions.next_time(state) for state in self._jobs.values()]
        times += [cron_runs.next_run_s(state) for state in self._jobs.values() if state.cron is not None]
        if any(not state.is_final and state.cron is None for state in self._jobs.values()):
            times.append(self._next_step_s)
        return min((at_s for at_s in times if at_s is not None), default=None)

    # Taking in -----------------------------------------------------------------------------------------------

    def _adopt(self, state: JobState, now_s: float) -> None:
        """A job of an earlier controller: its runs are watched again, its cells are held again."""
        if state.phase is JobPhase.CREATED and state.cron is None:
            self._take_job(state, now_s)
            return
        self._jobs[state.uid] = state
        self._mark(state)
        if state.cron is not None:
            return
        for run in state.all_runs:
            run_id = RunId(state.uid, run.role, run.index, run.attempt)
            if run.phase is ReplicaPhase.STARTING:
                self._todo.append((state, StartRun(run.role, run.index, run.attempt)))
            elif run.phase is ReplicaPhase.RUNNING:
                self._cluster.watch(run_id)
        held = state.reservation
        if held is not None and not state.has_left:
            restored = Restored(
                gang_request(state), held.epoch, held.placements, held.expires_s, frozenset(held.released),
                frozenset(held.running), held.started_s, leaving=bool(state.eviction),
            )  # fmt: skip
            self._tell(restored, now_s)
        elif not state.is_final:
            self._submit(state, now_s)

    def _take_new(self, now_s: float) -> None:
        for record in self._store.load(self._last_number):
            self._last_number = record.number
            if record.state.uid not in self._jobs:
                self._take_job(record.state, now_s)

    def _take_job(self, state: JobState, now_s: float) -> None:
        self._jobs[state.uid] = state
        self._mark(state)
        self._note(state, now_s, "JobCreated", f"{state.framework.kind} {state.spec.name} is created.")
        if state.cron is None:
            self._submit(state, now_s)

    def _submit(self, state: JobState, now_s: float) -> None:
        held = 0 if state.reservation is None else state.reservation.epoch
        try:
            self._tell(Submitted(gang_request(state), max(held, state.eviction_epoch)), now_s)
        except MillpondError as error:
            state.has_left = True
            transitions.set_condition(state, JobPhase.FAILED, "JobRefused", str(error), now_s)
            state.finished_s = now_s
        transitions.enqueue(state, now_s)

    def _take_wishes(self, now_s: float) -> list[int]:
        wishes = self._store.wishes()
        for _, uid, verb in wishes:
            state = self._jobs.get(uid)
            if state is None:
                continue
            self._mark(state)
            match verb:
                case "delete":
                    transitions.delete(state, now_s)
                    self._note(state, now_s, "JobDeleted", "The user deleted the job.")
                case "suspend" | "resume" if state.cron is not None:
                    state.cron.is_suspended = verb == "suspend"
                    state.cron.last_s = max(state.cron.last_s, now_s)  # runs missed while suspended stay missed
                case _ if verb.startswith("scale:"):
                    role, _, replicas = verb.removeprefix("scale:").rpartition("=")
                    if transitions.resize(state, role, int(replicas), now_s):
                        self._note(state, now_s, "Resized", f"{role} shall have {replicas} replicas.")
        return [number for number, _, _ in wishes]

    def _take_report(self, report: RunReport) -> None:
        run = report.id
        state = self._jobs.get(run.uid)
        if state is None:
            return
        name = f"{state.spec.name}-{run.role.lower()}-{run.index}"
        before = state.phase
        if not transitions.take_report(state, report):
            return
        self._mark(state)
        if report.exit_code is None:
            self._note(state, report.at_s, "Started", f"{name} runs as process {report.pid}.")
        else:
            because = f" ({report.reason})" if report.reason else ""
            kind = "Normal" if report.exit_code == 0 else "Warning"
            self._note(state, report.at_s, "Ended", f"{name} ended with code {report.exit_code}{because}.", kind)
        self._note_phase(state, before)

    def _make_cron_jobs(self, now_s: float) -> None:
        for state in [state for state in self._jobs.values() if state.cron is not None]:
            due_s = cron_runs.due_run(state, now_s)
            if due_s is not None:
                self._mark(state)
                self._make_cron_job(state, cron_runs.run_spec(state, due_s), now_s)
            for old in cron_runs.outdated_runs(state, self._jobs):
                if not old.is_deleting:
                    transitions.delete(old, now_s)
                    self._mark(old)

    def _make_cron_job(self, state: JobState, spec: JobSpec, now_s: float) -> None:
        assert state.cron is not None
        assert state.spec.cron is not None
        if not cron_runs.may_run(state, self._jobs):
            self._note(state, now_s, "Skipped", f"{spec.name} was not made: the last job still runs.", "Warning")
            return
        if any(job.spec.name == spec.name and job.spec.namespace == spec.namespace for job in self._jobs.values()):
            return  # made before
        if state.spec.cron.concurrency is Concurrency.REPLACE:
            for run in cron_runs.live_runs(state, self._jobs):
                transitions.delete(run, now_s, "Replaced")
                self._mark(run)
        job = make_job_state(spec, self._make_uid(), now_s, state.submit_dir, state.submit_env)
        job.cron_name = state.spec.name
        state.cron.runs.append(job.uid)
        self._new.append(job)
        self._take_job(job, now_s)
        self._note(state, now_s, "JobMade", f"Made {spec.name}.")

    # Deciding ------------------------------------------------------------------------------------------------

    def _decide(self, now_s: float) -> None:
        """Plans and steps until nobody has anything to say."""
        for state in self._jobs.values():
            due_s = instructions.next_time(state)
            if due_s is not None and due_s <= now_s:
                self._mark(state)
        waiting = list(self._dirty)
        for _ in range(_MAX_ROUNDS):
            for uid in waiting:
                self._plan(self._jobs[uid], now_s)
            if not self._is_changed and now_s < self._next_step_s:
                return
            self._is_changed, self._next_step_s = False, now_s + _STEP_EVERY_S
            waiting = [uid for decision in self._scheduler.step(now_s) for uid in self._take_decision(decision, now_s)]
        raise AssertionError("the controller and the scheduler do not come to an end")

    def _plan(self, state: JobState, now_s: float) -> None:
        before = state.phase
        for instruction in instructions.plan(state, now_s):
            if isinstance(instruction, Tell):
                self._tell(instruction.event, now_s)
            elif isinstance(instruction, MakeModelVersion):
                self._make_version(state, now_s)
            else:
                self._todo.append((state, instruction))
        self._note_phase(state, before)

    def _take_decision(self, decision: Decision, now_s: float) -> Iterable[str]:
        """Applies a decision to the jobs it is about; returns those to plan again."""
        match decision:
            case Preempt() | Reclaim():
                kind = "Preempted" if isinstance(decision, Preempt) else "Reclaimed"
                other = self._jobs.get(decision.for_job)
                name = other.spec.name if other is not None else decision.for_job
                for uid, epoch in zip(decision.job_ids, decision.epochs, strict=True):
                    if uid in self._jobs:
                        transitions.evict(self._jobs[uid], epoch, f"{kind} for job {name}.", now_s)
                        self._note(self._jobs[uid], now_s, kind, f"{kind} for job {name}.", "Warning")
                touched = [uid for uid in decision.job_ids if uid in self._jobs]
            case Reserve(uid, epoch, placements, expires_s):
                touched = [uid] if uid in self._jobs else []
                for state in map(self._jobs.__getitem__, touched):
                    transitions.reserve(state, epoch, placements, expires_s, self._take_ports(state))
                    self._note(state, now_s, "Reserved", f"All {state.spec.num_replicas} replicas have a place.")
            case Release(uid, epoch, role):
                touched = [uid] if uid in self._jobs else []
                for state in map(self._jobs.__getitem__, touched):
                    transitions.release(state, epoch, role)
            case Expire(uid, epoch, reason, must_stop):
                touched = [uid] if uid in self._jobs else []
                for state in map(self._jobs.__getitem__, touched):
                    transitions.evict(state, epoch, f"The reservation ended: {reason}.", now_s, must_stop=must_stop)
                    self._note(state, now_s, "Expired", f"The reservation ended: {reason}.", "Warning")
        for uid in touched:
            self._mark(self._jobs[uid])
        return touched

    def _take_ports(self, state: JobState) -> list[int]:
        taken = {run.port for other in self._jobs.values() for run in other.all_runs if run.port and not other.has_left}
        board = state.helpers.get(TENSORBOARD)
        ports = self._cluster.take_ports(len(state.replicas) + (board is not None), taken)
        if board is not None:
            board.port = ports.pop() or _BOARD_PORT
        return ports

    def _tell(self, event: Event, now_s: float) -> None:
        self._scheduler.apply(event, now_s)
        self._is_changed = True

    def _make_version(self, state: JobState, now_s: float) -> None:
        model = state.spec.model_version
        assert model is not None
        version = ModelVersionRecord(
            state.model_version, model.model_name, model.path, state.uid, now_s, model.created_by
        )
        self._versions.append(version)
        self._note(state, now_s, "ModelVersion", f"{model.model_name} has a new version {version.name}.")

    # Saving and carrying out ---------------------------------------------------------------------------------

    def _save(self, granted: list[int], now_s: float) -> None:
        explained = self._explain(now_s)
        if not (self._dirty or self._new or self._events or granted or explained):
            return
        with self._store.transaction():
            for state in self._new:
                with_name_taken = self._add(state)
                if with_name_taken:
                    del self._jobs[state.uid]
            self._store.save(self._jobs[uid] for uid in self._dirty if uid in self._jobs)
            self._store.add_events(self._events)
            self._store.explain(explained)
            for version in self._versions:
                self._store.add_model_version(version)
            self._store.grant(granted)
        gone = [uid for uid in self._dirty if uid in self._jobs and self._jobs[uid].deleted_s is not None]
        for uid in gone:
            del self._jobs[uid]
        self._dirty, self._new, self._events, self._versions = {}, [], [], []

    def _add(self, state: JobState) -> bool:
        try:
            self._store.add(state)
        except JobExistsError:
            return True  # a user took the name in the meantime
        return False

    def _explain(self, now_s: float) -> dict[str, dict[str, object]]:
        """What the scheduler says about the first waiting jobs; only what is new."""
        if not (self._dirty or self._new):
            return {}
        waiting = (s for s in self._jobs.values() if s.reservation is None and not s.is_final and s.cron is None)
        found: dict[str, dict[str, object]] = {}
        for state in itertools.islice(waiting, _EXPLAINED_JOBS):
            explanation = self._scheduler.explain(state.uid, now_s)
            if explanation is not None:
                names = tuple(self._jobs[uid].spec.name for uid in explanation.holders if uid in self._jobs)
                found[state.uid] = msgspec.to_builtins(dataclasses.replace(explanation, holders=names))
        before, self._explained = self._explained, found
        news = {uid: value for uid, value in found.items() if before.get(uid) != value}
        return news | {uid: {} for uid in before if uid not in found}

    def _carry_out(self) -> None:
        todo, self._todo = self._todo, []
        for state, instruction in todo:
            match instruction:
                case StartRun(role, index, attempt):
                    replica = state.replica(role, index)
                    if replica is not None and replica.attempt == attempt and replica.is_live:
                        self._cluster.start(make_run(state, replica, self._cluster.host_of))
                case StopRun(role, index, attempt, force):
                    self._cluster.stop(RunId(state.uid, role, index, attempt), force=force)
                case RemoveRuns():
                    self._cluster.remove(state.uid)
                case _:
                    raise AssertionError(instruction)

    def _mark(self, state: JobState) -> None:
        self._dirty[state.uid] = None

    def _note(self, state: JobState, at_s: float, reason: str, message: str, kind: str = "Normal") -> None:
        self._events.append((state.uid, EventRecord(at_s, kind, reason, message)))

    def _note_phase(self, state: JobState, before: JobPhase) -> None:
        if state.phase is not before:
            last = state.conditions[-1]
            kind = "Warning" if state.phase in (JobPhase.FAILED, JobPhase.RESTARTING) else "Normal"
            self._note(state, last.since_s, last.reason, last.message, kind)

"""What the controller remembers of a job, complete enough to go on after a crash.

`JobState` is mutable and owned by one controller; the store keeps it as JSON. The transitions in `transitions` are the
only code that changes it. Times are seconds since the epoch.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from dataclasses import dataclass, field

from millpond.api.job import Condition, JobPhase, JobSpec, ReplicaPhase
from millpond.jobs.frameworks import FRAMEWORKS
from millpond.jobs.frameworks.base import Framework
from millpond.jobs.scheduling.types import Placement

CODE_SYNC = "code-sync"
TENSORBOARD = "tensorboard"


@dataclass(slots=True)
class ReplicaState:
    """One replica, or a helper beside the job (`CODE_SYNC`, `TENSORBOARD`).

    Attributes:
        attempt: Counts starts; the cluster starts an attempt at most once.
        not_before_s: When it may start again.
        group: Devices of its whole group when it was aggregated with others on a node.
    """

    role: str
    index: int
    phase: ReplicaPhase = ReplicaPhase.PENDING
    attempt: int = 0
    restarts: int = 0
    port: int = 0
    node: str = ""
    device_ids: tuple[int, ...] = ()
    rank: int | None = None
    local_rank: int = 0
    group: tuple[int, ...] = ()
    group_size: int = 1
    pid: int | None = None
    exit_code: int | None = None
    message: str = ""
    started_s: float | None = None
    finished_s: float | None = None
    not_before_s: float = 0.0
    stop_sent_s: float | None = None
    is_forced: bool = False

    @property
    def is_live(self) -> bool:
        """Whether a process of it may exist."""
        return self.phase in (ReplicaPhase.STARTING, ReplicaPhase.RUNNING)

    @property
    def has_ended(self) -> bool:
        """Whether it ended for good."""
        return self.phase in (ReplicaPhase.SUCCEEDED, ReplicaPhase.FAILED)


@dataclass(slots=True)
class ReservationState:
    """What the scheduler holds for the job."""

    epoch: int
    placements: dict[str, tuple[Placement, ...]]
    expires_s: float
    released: set[str] = field(default_factory=set)
    running: set[str] = field(default_factory=set)  # roles of which the scheduler knows that they run
    succeeded: set[str] = field(default_factory=set)
    started_s: float | None = None


@dataclass(slots=True)
class CronState:
    """How far a cron has come."""

    last_s: float
    is_suspended: bool = False
    runs: list[str] = field(default_factory=list)  # uids, oldest first


@dataclass(slots=True)
class JobState:
    """A job.

    Attributes:
        eviction: Why its processes must leave while the job itself goes on; empty when they need not.
        has_left: The scheduler knows that the job is over.
        is_deleting: The user or the TTL gave it up.
        resize: Roles that shall have another number of replicas, once no process of the job is left.
        spent_attempts: New replicas count their attempts from here: an attempt of an earlier one must not come again.
    """

    uid: str
    spec: JobSpec
    created_s: float
    submit_dir: str = ""
    submit_env: dict[str, str] = field(default_factory=dict)
    phase: JobPhase = JobPhase.CREATED
    conditions: list[Condition] = field(default_factory=list)
    replicas: list[ReplicaState] = field(default_factory=list)
    helpers: dict[str, ReplicaState] = field(default_factory=dict)
    reservation: ReservationState | None = None
    eviction: str = ""
    eviction_epoch: int = 0
    restarts: int = 0
    started_s: float | None = None
    finished_s: float | None = None
    deleted_s: float | None = None
    has_left: bool = False
    is_deleting: bool = False
    resize: dict[str, int] = field(default_factory=dict)
    spent_attempts: int = 0
    model_version: str = ""
    cron: CronState | None = None
    cron_name: str = ""

    @property
    def framework(self) -> Framework:
        """The table of its framework."""
        return FRAMEWORKS[self.spec.framework]

    @property
    def is_final(self) -> bool:
        """Whether it has succeeded or failed."""
        return self.phase.is_final

    @property
    def running_spec(self) -> JobSpec:
        """The spec with as many replicas as have a place: a role with a minimum may run with fewer."""
        if self.reservation is None:
            return self.spec
        placed = Counter(replica.role for replica in self.replicas if replica.node)
        roles = tuple(dataclasses.replace(role, replicas=placed[role.name]) for role in self.spec.roles)
        return dataclasses.replace(self.spec, roles=roles)

    @property
    def live(self) -> list[ReplicaState]:
        """Replicas, without helpers, that may have a process."""
        return [replica for replica in self.replicas if replica.is_live]

    @property
    def all_runs(self) -> list[ReplicaState]:
        """Replicas and helpers."""
        return [*self.replicas, *self.helpers.values()]

    def replica(self, role: str, index: int) -> ReplicaState | None:
        """The replica or helper of that name."""
        if role in self.helpers:
            return self.helpers[role]
        return next((r for r in self.replicas if r.role == role and r.index == index), None)

    def phase_of(self, role: str, index: int) -> ReplicaPhase:
        """The phase of a replica, as success rules ask for it."""
        replica = self.replica(role, index)
        return ReplicaPhase.PENDING if replica is None else replica.phase


def make_job_state(
    spec: JobSpec, uid: str, now_s: float, submit_dir: str = "", submit_env: dict[str, str] | None = None
) -> JobState:
    """A job that was just submitted."""
    state = JobState(uid=uid, spec=spec, created_s=now_s, submit_dir=submit_dir, submit_env=submit_env or {})
    state.conditions.append(Condition(JobPhase.CREATED, "JobCreated", f"Job {spec.name} is created.", now_s))
    if spec.cron is not None:
        state.cron = CronState(last_s=now_s, is_suspended=spec.cron.suspend)
        return state
    state.replicas = [ReplicaState(role.name, index) for role in spec.roles for index in range(role.replicas)]
    if spec.code is not None:
        state.helpers[CODE_SYNC] = ReplicaState(CODE_SYNC, 0)
    if spec.tensorboard is not None:
        state.helpers[TENSORBOARD] = ReplicaState(TENSORBOARD, 0)
    return state

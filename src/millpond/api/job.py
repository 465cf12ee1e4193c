"""A job as every room sees it: what was asked for (`JobSpec`) and how it goes (`JobStatus`).

One shape for every framework and every cluster. The loaders of `jobs` make specs from YAML, the controller runs them,
the command line and the REST API show them. Knows no framework, no cluster and no clock; times are seconds since the
epoch, passed in.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from millpond.base.errors import MillpondError


class SpecError(MillpondError):
    """A job's specification is wrong; `param` is the path of the field at fault."""

    code = "invalid_job"


class JobNotFoundError(MillpondError):
    """There is no such job."""

    code = "job_not_found"


class JobExistsError(MillpondError):
    """A job of that name is there already and has not been deleted."""

    code = "job_exists"


class RestartPolicy(StrEnum):
    """What an ended replica means: start it again, or let it count."""

    ALWAYS = "Always"
    ON_FAILURE = "OnFailure"
    NEVER = "Never"
    EXIT_CODE = "ExitCode"  # the exit code decides, see jobs.exit_codes


class CleanPolicy(StrEnum):
    """Which replicas go when the job has ended."""

    ALL = "All"  # stop what runs, remove logs and directories of every replica
    RUNNING = "Running"  # stop what runs, keep what ended
    NONE = "None"  # touch nothing


class SuccessPolicy(StrEnum):
    """When a job with workers has succeeded, if its framework leaves a choice."""

    DEFAULT = ""
    ALL_WORKERS = "AllWorkers"


class Concurrency(StrEnum):
    """What a cron does when its last job still runs."""

    ALLOW = "Allow"
    FORBID = "Forbid"
    REPLACE = "Replace"


class StartPhase(StrEnum):
    """The phase that every replica of an upstream role has reached before the next role starts."""

    CREATED = "Created"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"


class ReplicaPhase(StrEnum):
    """Where one replica stands."""

    PENDING = "Pending"  # not started, or waiting to be started again
    STARTING = "Starting"  # the cluster was told; it may run already
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class JobPhase(StrEnum):
    """The type of a job's last condition."""

    CREATED = "Created"
    QUEUING = "Queuing"
    RUNNING = "Running"
    RESTARTING = "Restarting"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"

    @property
    def is_final(self) -> bool:
        """Whether nothing changes the phase any more."""
        return self in (JobPhase.SUCCEEDED, JobPhase.FAILED)


@dataclass(frozen=True, slots=True)
class Resources:
    """What one replica needs.

    Attributes:
        devices: Accelerators.
        device_type: Model of accelerator; None takes any.
        cpus: Processors, or slots where a cluster counts those.
        memory_bytes: Memory; 0 asks for none.
    """

    devices: int = 0
    device_type: str | None = None
    cpus: float = 1.0
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class StartAfter:
    """An edge of the start order: every replica of `role` is at `phase` or past it."""

    role: str
    phase: StartPhase = StartPhase.RUNNING


@dataclass(frozen=True, slots=True)
class SpotSpec:
    """The last `replicas` indexes of a role run on capacity that can be taken away."""

    replicas: int
    priority_class: str = ""
    labels: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class RoleSpec:
    """One role: so many equal replicas.

    Attributes:
        command: Program and arguments.
        restart: None only in a draft; a loaded spec has it resolved.
        min_replicas: The job can start with so many; None means all.
        max_replicas: It can be scaled to so many; None: no limit.
        after: None takes the framework's start order.
        image: Where a cluster runs containers; `local` runs the command as it stands.
    """

    name: str
    replicas: int = 1
    command: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    working_dir: str = ""
    image: str = ""
    resources: Resources = field(default_factory=Resources)
    restart: RestartPolicy | None = None
    min_replicas: int | None = None
    max_replicas: int | None = None
    after: tuple[StartAfter, ...] | None = None
    port: int | None = None
    spot: SpotSpec | None = None
    node_selector: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class CronSpec:
    """Runs the job again and again. `deadline_s`: no runs after that time."""

    schedule: str
    concurrency: Concurrency = Concurrency.ALLOW
    suspend: bool = False
    deadline_s: float | None = None
    history_limit: int = 10


@dataclass(frozen=True, slots=True)
class CodeSpec:
    """Code that is fetched with git before the first replica starts."""

    source: str
    branch: str = ""
    revision: str = ""
    depth: int = 0  # 0: everything
    root_path: str = ""
    dest: str = ""  # the repository's name
    max_failures: int = 3
    env: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TensorBoardSpec:
    """A TensorBoard beside the job; it goes `ttl_s` after the job has ended."""

    log_dir: str
    ttl_s: float = 0.0
    image: str = ""


@dataclass(frozen=True, slots=True)
class ModelVersionSpec:
    """A version of a model that a successful job leaves behind.

    Attributes:
        model_name: Name that versions are counted under.
        path: Directory the job writes to; it finds it in KUBEDL_MODEL_PATH.
    """

    model_name: str
    path: str
    image_repo: str = ""
    created_by: str = ""


@dataclass(frozen=True, slots=True)
class JobSpec:
    """What was asked for, complete: every default has been filled in.

    Attributes:
        framework: A key of the frameworks' registry: "pytorch", "tf", "mpi", ...
        tenant: Whose quota counts; the queue, else the namespace.
        active_deadline_s: The job fails when it has run for so long.
        backoff_limit: The job fails after so many restarts; None: no limit.
        min_available: Replicas that must be there to start, over all roles; None: all.
        options: Fields that one framework alone knows.
        run_estimate_s: How long the user expects it to run; helps backfill.
    """

    name: str
    framework: str
    roles: tuple[RoleSpec, ...]
    namespace: str = "default"
    tenant: str = "default"
    priority: int = 0
    priority_class: str = ""
    preemptible: bool = True
    success_policy: SuccessPolicy = SuccessPolicy.DEFAULT
    clean_policy: CleanPolicy = CleanPolicy.RUNNING
    ttl_s: float | None = None
    active_deadline_s: float | None = None
    backoff_limit: int | None = None
    min_available: int | None = None
    run_estimate_s: float | None = None
    aggregate: bool = False
    cron: CronSpec | None = None
    code: CodeSpec | None = None
    tensorboard: TensorBoardSpec | None = None
    model_version: ModelVersionSpec | None = None
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)
    options: dict[str, int | str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()  # what was read and has no effect here, one sentence each

    def role(self, name: str) -> RoleSpec | None:
        """The role of that name, if the job has it."""
        return next((role for role in self.roles if role.name == name), None)

    @property
    def num_replicas(self) -> int:
        """Replicas of all roles."""
        return sum(role.replicas for role in self.roles)

    @property
    def num_devices(self) -> int:
        """Accelerators of all replicas."""
        return sum(role.replicas * role.resources.devices for role in self.roles)


@dataclass(frozen=True, slots=True)
class Condition:
    """Something that became true of a job, and stopped being so when `is_true` is False."""

    type: JobPhase
    reason: str
    message: str
    since_s: float
    is_true: bool = True


@dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """One replica as it is shown."""

    name: str
    role: str
    index: int
    phase: ReplicaPhase
    node: str = ""
    device_ids: tuple[str, ...] = ()
    rank: int | None = None
    pid: int | None = None
    restarts: int = 0
    exit_code: int | None = None
    started_s: float | None = None
    finished_s: float | None = None
    is_chief: bool = False
    devices: int = 0
    message: str = ""


@dataclass(frozen=True, slots=True)
class JobStatus:
    """How a job goes; made by one function for every reader (list, get, REST, pages).

    Attributes:
        is_stopping: Deletion or an end was decided and replicas still stop.
        waiting: Why it waits, one sentence; empty when it does not.
        explanation: The scheduler's object behind `waiting`, as plain data.
    """

    uid: str
    name: str
    namespace: str
    kind: str
    framework: str
    phase: JobPhase
    conditions: tuple[Condition, ...]
    replicas: tuple[ReplicaStatus, ...]
    tenant: str
    priority: int
    created_s: float
    started_s: float | None = None
    finished_s: float | None = None
    deleted_s: float | None = None
    requested_devices: int = 0
    allocated_devices: int = 0
    restarts: int = 0
    is_stopping: bool = False
    waiting: str = ""
    explanation: dict[str, object] = field(default_factory=dict)
    model_version: str = ""
    tensorboard_url: str = ""
    cron_name: str = ""
    notes: tuple[str, ...] = ()

"""What a framework is: a table of roles, ports and defaults, one function for the environment, one rule for success.

A framework file fills in a `Framework`; nothing else in `jobs` knows its name. Called by the loaders (roles, defaults)
and by the controller (start order, environment, success).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from millpond.api.job import CleanPolicy, JobSpec, ReplicaPhase, RestartPolicy, RoleSpec, StartAfter


@dataclass(frozen=True, slots=True)
class RoleRule:
    """A role that a framework knows.

    Attributes:
        after: Roles that must run first; one the job does not have counts as ready.
        is_member: Whether it counts in the world's size and the cluster's description.
        default_command: What runs when the user gives no command.
    """

    name: str
    restart: RestartPolicy = RestartPolicy.NEVER
    after: tuple[str, ...] = ()
    is_chief: bool = False
    is_member: bool = True
    default_command: tuple[str, ...] = ()

    @property
    def start_after(self) -> tuple[StartAfter, ...]:
        """The edges of the start order."""
        return tuple(StartAfter(role) for role in self.after)


@dataclass(frozen=True, slots=True)
class Option:
    """A field of `spec` that one framework alone has: a whole number from low to high, a choice, or any text.

    Attributes:
        group: KubeDL's field that the option stands under; empty: directly in `spec`.
    """

    low: int = 0
    high: int = 1 << 31
    choices: tuple[str, ...] = ()
    default: int | str | None = None
    is_text: bool = False
    group: str = ""


@dataclass(frozen=True, slots=True)
class Address:
    """Where a replica listens."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Replica:
    """One replica, as the function that makes its environment sees it.

    Attributes:
        addresses: Address of every replica of the job, by role and index.
        rank: The scheduler's choice when ranks follow the wiring; None: the framework's own order.
    """

    job: JobSpec
    role: RoleSpec
    index: int
    uid: str
    addresses: Mapping[tuple[str, int], Address]
    rank: int | None = None

    def address(self, role: str, index: int = 0) -> Address:
        """Where that replica listens."""
        return self.addresses[role, index]

    def cluster(self, roles: Sequence[str]) -> dict[str, list[str]]:
        """Addresses by role in lower case, for the roles that the job has."""
        present = [role for role in (self.job.role(name) for name in roles) if role is not None and role.replicas]
        return {role.name.lower(): [str(self.address(role.name, i)) for i in range(role.replicas)] for role in present}

    def num_members(self, roles: Sequence[str]) -> int:
        """Replicas of those roles together."""
        return sum(role.replicas for role in self.job.roles if role.name in roles)

    def rank_after(self, roles: Sequence[str]) -> int:
        """This replica's rank when the roles stand in that order."""
        if self.rank is not None:
            return self.rank
        before = roles[: roles.index(self.role.name)] if self.role.name in roles else ()
        return self.num_members(before) + self.index


Environment = Callable[[Replica], dict[str, str]]
Files = Callable[[Replica], dict[str, str]]
PhaseOf = Callable[[str, int], ReplicaPhase]
SuccessRule = Callable[[JobSpec, PhaseOf], bool]


def no_environment(_replica: Replica) -> dict[str, str]:
    """For a framework that finds its peers by itself, and for files when there are none."""
    return {}


def num_done(job: JobSpec, phase_of: PhaseOf, role: str) -> int:
    """Replicas of the role that succeeded."""
    spec = job.role(role)
    return sum(phase_of(role, index) is ReplicaPhase.SUCCEEDED for index in range(spec.replicas)) if spec else 0


def is_role_done(job: JobSpec, phase_of: PhaseOf, role: str) -> bool:
    """Whether the job has the role and every replica of it succeeded."""
    spec = job.role(role)
    return spec is not None and spec.replicas > 0 and num_done(job, phase_of, role) == spec.replicas


def all_done(job: JobSpec, phase_of: PhaseOf) -> bool:
    """Every replica of every role succeeded."""
    return all(is_role_done(job, phase_of, role.name) for role in job.roles if role.replicas)


def done_with(*roles: str) -> SuccessRule:
    """The first of these roles that the job has decides; a job with none of them needs every replica."""

    def rule(job: JobSpec, phase_of: PhaseOf) -> bool:
        for name in roles:
            role = job.role(name)
            if role is not None and role.replicas:
                return is_role_done(job, phase_of, name)
        return all_done(job, phase_of)

    return rule


@dataclass(frozen=True, slots=True)
class Framework:
    """One framework.

    Attributes:
        name: Key of the registry and of our short form.
        kind: KubeDL's kind.
        short: Arena's short name for -T.
        api_version: Group and version of KubeDL's kind.
        replica_specs: Field of KubeDL's spec that holds the roles; empty: there is one role, and `template` is its pod.
        container: Name of the main container.
        roles: In the order of creation.
        has_kind: Whether clusters have objects of its kind; our own forms of a job have none.
        tolerates_failures: A failed replica fails the job only when the success rule cannot be met any more.
        files: Files (name to content) put beside a replica; MILLPOND_JOB_DIR says where they are.
    """

    name: str
    kind: str
    short: str
    replica_specs: str
    container: str
    port: int
    roles: tuple[RoleRule, ...]
    environment: Environment = no_environment
    files: Files = no_environment
    succeeded: SuccessRule = all_done
    has_kind: bool = True
    api_version: str = "training.kubedl.io/v1alpha1"
    tolerates_failures: bool = False
    clean_policy: CleanPolicy = CleanPolicy.NONE
    ttl_s: float | None = None
    backoff_limit: int | None = None
    options: Mapping[str, Option] = field(default_factory=dict)

    def rule(self, role: str) -> RoleRule | None:
        """The rule of a role, by its exact name."""
        return next((rule for rule in self.roles if rule.name == role), None)

    def is_chief(self, job: JobSpec, role: str, index: int) -> bool:
        """Whether this replica is the one to watch: the first of the first chief role that the job has."""
        present = [name for name in (*self.chiefs, "Worker") if job.role(name) is not None]
        return index == 0 and bool(present) and role == present[0]

    @property
    def chiefs(self) -> tuple[str, ...]:
        """Roles that lead, in order."""
        return tuple(rule.name for rule in self.roles if rule.is_chief)

    @property
    def members(self) -> tuple[str, ...]:
        """Roles that count in the world, in order."""
        return tuple(rule.name for rule in self.roles if rule.is_member)

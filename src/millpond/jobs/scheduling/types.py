"""What goes into the scheduler of jobs and what comes out: requests, events, decisions, explanations.

Owns the words between the scheduler, the controller and the clusters. Everything is a frozen value without
behaviour, so that a log of events and decisions can be written, read and replayed. Knows no clock: every time is
seconds on whatever clock the caller passes to `Scheduler.apply` and `Scheduler.step`. Nothing here does I/O.

`epoch` counts the reservations a job had. Events about processes carry the epoch they belong to; the scheduler drops
those of an earlier one, so late and repeated events are harmless.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from millpond.api.topology import NodeWiring


class Phase(StrEnum):
    """How far the processes of a role have come."""

    CREATED = "created"
    RUNNING = "running"
    SUCCEEDED = "succeeded"


class JobStatus(StrEnum):
    """Where a job is, as the scheduler sees it."""

    PENDING = "pending"  # waits; holds nothing
    RESERVED = "reserved"  # holds every cell of every role; not all roles run yet
    RUNNING = "running"  # every role was started
    LEAVING = "leaving"  # must stop; its cells come back with `Evicted` or `Finished`
    FINISHED = "finished"  # succeeded, failed or cancelled; holds nothing and never comes back


# Requests --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ResourceRequest:
    """What one replica of a role needs, all of it on one node."""

    devices: int = 0
    device_type: str | None = None
    cpus: float = 0.0
    memory_bytes: int = 0


@dataclass(frozen=True, slots=True)
class StartEdge:
    """A role starts only after another role of the same job has come this far. An unknown role counts as there."""

    role: str
    phase: Phase = Phase.RUNNING


@dataclass(frozen=True, slots=True)
class RoleRequest:
    """One role of a job: equal replicas. With `min_replicas` the job may start with fewer than `replicas`."""

    name: str
    replicas: int
    resources: ResourceRequest
    min_replicas: int | None = None
    after: tuple[StartEdge, ...] = ()


@dataclass(frozen=True, slots=True)
class StepModel:
    """What a training step costs: the time of one step is `compute_s + (1 - overlap) * all-reduce time`."""

    compute_s: float
    gradient_bytes: int
    overlap: float = 0.5
    num_steps: int = 1


@dataclass(frozen=True, slots=True)
class AggregationRequest:
    """The named role asks for N replicas of one device and may run as any split of N: 8, 4+4, 7+1, 3+5, 8 x 1."""

    role: str
    max_parts: int | None = None
    min_gain: float = 0.1  # waiting for a better shape must end the job earlier by this share of the time left


@dataclass(frozen=True, slots=True)
class GangRequest:
    """A whole job: it starts with every role or not at all."""

    job_id: str
    tenant: str
    roles: tuple[RoleRequest, ...]
    priority: int = 0
    submitted_s: float = 0.0
    run_s_estimate: float | None = None
    preemptible: bool = True
    aggregation: AggregationRequest | None = None
    spot: bool = False
    step: StepModel | None = None
    start_timeout_s: float = 300.0
    selector: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """A machine of the cluster. `broken` devices exist but are never used."""

    name: str
    wiring: NodeWiring
    device_type: str | None = None
    cpus: float = 0.0
    memory_bytes: int = 0
    rack: str = ""
    labels: tuple[tuple[str, str], ...] = ()
    broken: frozenset[int] = frozenset()


Quota = Mapping[str, float]  # "devices", "devices/<type>", "cpus", "memory_bytes" -> amount


@dataclass(frozen=True, slots=True)
class TenantSpec:
    """A tenant in the tree of quotas.

    Attributes:
        name: Unique in the tree.
        parent: The tenant above; None for a root.
        guaranteed: What the tenant can always get back. A resource it does not name has no guarantee.
        maximum: What the tenant and all below it never exceed. A resource it does not name is limited above only.
        weight: Share of what is left over, against its siblings.
        can_borrow: Whether it may hold more than guaranteed while others leave it unused.
        can_lend: Whether others may use its unused guarantee.
    """

    name: str
    parent: str | None = None
    guaranteed: Quota = field(default_factory=dict)
    maximum: Quota = field(default_factory=dict)
    weight: float = 1.0
    can_borrow: bool = True
    can_lend: bool = True


@dataclass(frozen=True, slots=True)
class Placement:
    """One process group of a role on one node.

    Attributes:
        node: Name of the node.
        device_ids: Its devices, in ring order: neighbours in the tuple are neighbours on the wire.
        rank: The replica's index; of an aggregated role, the rank of the process on the first device.
        num_ranks: 1, or the number of ranks of an aggregated group: rank + i runs on `device_ids[i]`.
    """

    node: str
    device_ids: tuple[int, ...]
    rank: int
    num_ranks: int = 1


Placements = Mapping[str, tuple[Placement, ...]]


# Events ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job was sent. A job id the scheduler knows already is ignored.

    Attributes:
        request: The job.
        epoch: After a restart, the last epoch the job had, so that no number is given twice.
    """

    request: GangRequest
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Cancelled:
    """The user gave the job up. Released processes still hold their cells until `Evicted` or `Finished`."""

    job_id: str


@dataclass(frozen=True, slots=True)
class Started:
    """Every process of a role has reached the phase."""

    job_id: str
    epoch: int
    role: str
    phase: Phase = Phase.RUNNING


@dataclass(frozen=True, slots=True)
class Finished:
    """The job is over and none of its processes are left."""

    job_id: str
    epoch: int
    succeeded: bool = True


@dataclass(frozen=True, slots=True)
class StartFailed:
    """A role could not be started and none of the job's processes are left: the job goes back to the queue."""

    job_id: str
    epoch: int
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Evicted:
    """None of the processes of a job that had to leave (`Preempt`, `Reclaim`, `Expire`) are left."""

    job_id: str
    epoch: int


@dataclass(frozen=True, slots=True)
class Restored:
    """After a restart: a reservation that was decided before.

    Sent after the nodes and tenants and before any step; those that are leaving last, because a node may have been lost
    and given to others since. A reservation whose cells are not all there any more is void.
    """

    request: GangRequest
    epoch: int
    placements: Placements
    expires_s: float
    released: frozenset[str] = frozenset()
    started: frozenset[str] = frozenset()
    started_s: float | None = None
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class NodeJoined:
    """A node is there. Sent again it replaces the labels and the broken devices of the node."""

    node: NodeSpec


@dataclass(frozen=True, slots=True)
class NodeLost:
    """A node is gone with every process on it."""

    name: str


@dataclass(frozen=True, slots=True)
class NodeCordoned:
    """A node takes no new work (`cordoned`) or takes it again; what runs there goes on."""

    name: str
    cordoned: bool = True


@dataclass(frozen=True, slots=True)
class TenantChanged:
    """A tenant is new or has new numbers."""

    tenant: TenantSpec


@dataclass(frozen=True, slots=True)
class TenantRemoved:
    """A tenant is gone; its pending jobs wait until it comes back."""

    name: str


Event = (
    Submitted | Cancelled | Started | Finished | StartFailed | Evicted | Restored
    | NodeJoined | NodeLost | NodeCordoned | TenantChanged | TenantRemoved
)  # fmt: skip


# Decisions -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reserve:
    """Every cell of every role is now held for the job, until it is over or the reservation expires."""

    job_id: str
    epoch: int
    placements: Placements
    expires_s: float
    bus_gbps: float = 0.0


@dataclass(frozen=True, slots=True)
class Release:
    """The role's processes may be started on the reserved cells. Comes in the order of the roles' DAG."""

    job_id: str
    epoch: int
    role: str


@dataclass(frozen=True, slots=True)
class Preempt:
    """These jobs must stop for a job of higher priority. `epochs` are theirs, in the same order."""

    job_ids: tuple[str, ...]
    epochs: tuple[int, ...]
    for_job: str


@dataclass(frozen=True, slots=True)
class Reclaim:
    """These jobs run on borrowed quota that its owner wants back for a job."""

    job_ids: tuple[str, ...]
    epochs: tuple[int, ...]
    for_job: str


@dataclass(frozen=True, slots=True)
class Expire:
    """The reservation is void. `must_stop`: some roles were released; stop them, then send `Evicted`."""

    job_id: str
    epoch: int
    reason: str
    must_stop: bool


Decision = Reserve | Release | Preempt | Reclaim | Expire


# Explanations ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Shortage:
    """One thing a job lacks.

    Attributes:
        kind: `quota`, `devices`, `cpus`, `memory`, `links`, `order` (behind a reservation), `eviction` or `selector`.
        where: The tenant, role or node at fault.
        asked: How much is needed.
        available: How much there is now.
        detail: One sentence for people.
    """

    kind: str
    where: str
    asked: float
    available: float
    detail: str


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why a job is where it is. The same object feeds list, get, REST and pages."""

    job_id: str
    status: JobStatus
    message: str
    shortages: tuple[Shortage, ...] = ()
    holders: tuple[str, ...] = ()
    position: int | None = None
    estimated_start_s: float | None = None

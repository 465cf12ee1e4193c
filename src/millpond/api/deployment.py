"""A serving deployment as every room sees it: what was asked for and how it goes.

A deployment is versions of a server behind one port; a version is equal replicas; a replica is a job. Loaders make
specs, the gateway keeps them, the command line and the REST API show the status. Knows no cluster and no clock; times
are seconds since the epoch, passed in.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from millpond.api.job import RoleSpec
from millpond.base.errors import MillpondError


class DeploymentNotFoundError(MillpondError):
    """There is no such deployment, version or revision."""

    code = "deployment_not_found"


class DeploymentExistsError(MillpondError):
    """A deployment or version of that name is there already."""

    code = "deployment_exists"


class ServerPhase(StrEnum):
    """Where one replica stands."""

    QUEUED = "Queued"  # its job waits for a place
    STARTING = "Starting"  # it runs and has not been ready yet
    READY = "Ready"
    UNREADY = "Unready"  # it was ready and does not answer now
    DRAINING = "Draining"  # gets no new requests, finishes those it has
    ENDED = "Ended"


class DeploymentPhase(StrEnum):
    """Where a deployment or a version stands."""

    PROGRESSING = "Progressing"  # on the way to what was asked for
    READY = "Ready"  # as asked for
    FAILING = "Failing"  # replicas end or do not become ready; `message` says why
    STOPPING = "Stopping"
    UNATTENDED = "Unattended"  # its gateway does not run


@dataclass(frozen=True, slots=True)
class ProbeSpec:
    """When a replica counts as ready.

    Attributes:
        path: Answered with a status below 400; empty: taking a connection is enough.
        failures: So many in a row, and it gets no requests.
        start_s: The longest time to be ready first.
        give_up: So many failures in a row after it was ready, and it is replaced; 0 never.
    """

    path: str = ""
    interval_s: float = 1.0
    timeout_s: float = 2.0
    failures: int = 3
    start_s: float = 600.0
    give_up: int = 60


@dataclass(frozen=True, slots=True)
class RolloutSpec:
    """How replicas are exchanged: whole numbers, or a share of the replicas as a text ("25%").

    Attributes:
        drain_s: How long a replica may finish its requests before it is stopped.
    """

    max_surge: int | str = 1
    max_unavailable: int | str = 0
    drain_s: float = 60.0

    def surge_of(self, replicas: int) -> int:
        """How many there may be beyond `replicas`."""
        return self.max_surge if isinstance(self.max_surge, int) else math.ceil(_share(self.max_surge) * replicas)

    def unavailable_of(self, replicas: int) -> int:
        """How many of `replicas` may be missing; at least one when there must be no surge either."""
        asked = self.max_unavailable
        missing = asked if isinstance(asked, int) else math.floor(_share(asked) * replicas)
        return missing if missing or self.surge_of(replicas) else 1


def _share(percent: str) -> float:
    return int(percent.rstrip("%")) / 100


@dataclass(frozen=True, slots=True)
class AutoscaleSpec:
    """How many replicas there are follows the load.

    Attributes:
        targets: What one replica should have: `queue` (waiting requests), `kv` (used share of the KV cache),
            `requests` (being answered), or a gauge of the replicas' metrics page by its name.
        up_s, down_s: The load must ask for a change for so long.
        tolerance: Deviations from the target by this share change nothing.
    """

    low: int
    high: int
    targets: dict[str, float]
    up_s: float = 0.0
    down_s: float = 300.0
    tolerance: float = 0.1


@dataclass(frozen=True, slots=True)
class TemplateSpec:
    """What a replica is; a change of it makes a new revision.

    Attributes:
        role: Command, variables, resources. The command finds its port in $PORT. None: what its image starts, and
            only a cluster with containers can run it.
        model: What it serves, for those who look.
        ports: Further ports of a container, by name.
        pod: A pod template with what pods have beside ours; only a cluster with containers heeds it and `ports`.
    """

    role: RoleSpec
    ready: ProbeSpec = field(default_factory=ProbeSpec)
    metrics_path: str = "/metrics"
    model: str = ""
    ports: dict[str, int] = field(default_factory=dict)
    pod: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class VersionSpec:
    """Equal replicas under a name. `weight`: its share of the requests, against those of the other versions."""

    name: str
    template: TemplateSpec
    replicas: int = 1
    weight: int = 100
    rollout: RolloutSpec = field(default_factory=RolloutSpec)
    autoscale: AutoscaleSpec | None = None


@dataclass(frozen=True, slots=True)
class GatewaySpec:
    """The port that clients know.

    Attributes:
        port: 0 takes a free one, once.
        concurrency: Requests that one replica is given at a time; 0: no limit.
        max_queue: Requests that wait for a replica; past it 503.
        timeout_s: To the first byte of an answer.
        idle_timeout_s: Between two pieces of an answer.
        retries: Further replicas that a request is offered before the first byte of its answer is passed on.
    """

    host: str = "127.0.0.1"
    port: int = 0
    concurrency: int = 0
    max_queue: int = 256
    queue_timeout_s: float = 60.0
    timeout_s: float = 600.0
    idle_timeout_s: float = 300.0
    retries: int = 3


@dataclass(frozen=True, slots=True)
class DeploymentSpec:
    """What was asked for, complete."""

    name: str
    versions: tuple[VersionSpec, ...]
    namespace: str = "default"
    tenant: str = "default"
    priority: int = 0
    kind: str = "serving"  # Arena's type: custom, triton, ...
    gateway: GatewaySpec = field(default_factory=GatewaySpec)
    labels: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def version(self, name: str) -> VersionSpec | None:
        """The version of that name."""
        return next((version for version in self.versions if version.name == name), None)


@dataclass(frozen=True, slots=True)
class Revision:
    """A template that a version had."""

    number: int
    template: TemplateSpec
    created_s: float
    cause: str = ""


@dataclass(frozen=True, slots=True)
class ServerStatus:
    """One replica."""

    name: str
    uid: str
    version: str
    revision: int
    phase: ServerPhase
    address: str = ""
    node: str = ""
    in_flight: int = 0
    requests: int = 0
    devices: int = 0
    created_s: float = 0.0
    ready_s: float | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class VersionStatus:
    """One version.

    Attributes:
        desired: Replicas there should be: asked for, or the autoscaler's.
        updated: Replicas of the newest revision.
        readings: What the autoscaler last saw of a replica, on average, by target.
    """

    name: str
    phase: DeploymentPhase
    revision: int
    weight: int
    desired: int
    updated: int
    ready: int
    requests: int = 0
    failures: int = 0
    readings: dict[str, float] = field(default_factory=dict)
    message: str = ""
    model: str = ""


@dataclass(frozen=True, slots=True)
class DeploymentStatus:
    """How a deployment goes; made by one function for every reader.

    Attributes:
        observed: The generation of the wish that this is about; below `generation`, the gateway has not seen it yet.
        queue: Requests that wait for a replica.
    """

    uid: str
    name: str
    namespace: str
    kind: str
    phase: DeploymentPhase
    address: str
    generation: int
    observed: int
    created_s: float
    versions: tuple[VersionStatus, ...] = ()
    replicas: tuple[ServerStatus, ...] = ()
    queue: int = 0
    message: str = ""
    seen_s: float = 0.0
    deleted_s: float | None = None

    @property
    def is_settled(self) -> bool:
        """Whether everything is as asked for."""
        return self.observed >= self.generation and self.phase is DeploymentPhase.READY

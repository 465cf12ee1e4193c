"""How a deployment goes, from what the keeper knows: one function for every reader. Pure."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from millpond.api.deployment import (
    DeploymentPhase,
    DeploymentStatus,
    ServerPhase,
    ServerStatus,
    VersionStatus,
)
from millpond.jobs.deployments.autoscale import mean_readings
from millpond.jobs.deployments.wish import Wish

if TYPE_CHECKING:
    from millpond.jobs.deployments.servers import Replica

SILENT_S = 15.0  # a keeper that has said nothing for so long does not run


@dataclass(frozen=True, slots=True)
class VersionFacts:
    """What the keeper remembers of a version beside its replicas. `trouble`: why its last replica failed."""

    desired: int
    trouble: str = ""
    requests: int = 0
    failures: int = 0
    readings: Sequence[Mapping[str, float] | None] = field(default_factory=tuple)


def make_status(
    wish: Wish, replicas: Sequence[Replica], facts: Mapping[str, VersionFacts], waiting: int, now_s: float
) -> DeploymentStatus:
    """How the deployment goes now."""
    versions = tuple(_version(wish, name, replicas, found) for name, found in facts.items())
    order = [DeploymentPhase.FAILING, DeploymentPhase.PROGRESSING, DeploymentPhase.READY]
    phase = min((version.phase for version in versions), key=order.index, default=DeploymentPhase.PROGRESSING)
    is_leaving = any(replica.phase is ServerPhase.DRAINING for replica in replicas)
    if phase is DeploymentPhase.READY and is_leaving:
        phase = DeploymentPhase.PROGRESSING
    return DeploymentStatus(
        uid=wish.uid,
        name=wish.spec.name,
        namespace=wish.spec.namespace,
        kind=wish.spec.kind,
        phase=DeploymentPhase.STOPPING if wish.is_deleting else phase,
        address=address(wish),
        generation=wish.generation,
        observed=wish.generation,
        created_s=wish.created_s,
        versions=versions,
        replicas=tuple(_server(replica) for replica in sorted(replicas, key=lambda r: (r.version, r.created_s))),
        queue=waiting,
        message=next((version.message for version in versions if version.message), ""),
        seen_s=now_s,
    )


def seen(wish: Wish, said: DeploymentStatus | None, now_s: float) -> DeploymentStatus:
    """What a reader is shown: the keeper's last word, or that there is none."""
    if said is None or now_s - said.seen_s > SILENT_S:
        phase = DeploymentPhase.PROGRESSING if said is None else DeploymentPhase.UNATTENDED
        message = "Its gateway is being started." if said is None else "Its gateway does not run; it is started again."
        asked = {version.name: VersionFacts(version.replicas) for version in wish.spec.versions}
        base = said or make_status(wish, (), asked, 0, 0.0)
        return _with(base, wish, DeploymentPhase.STOPPING if wish.is_deleting else phase, message)
    phase = DeploymentPhase.PROGRESSING if said.observed < wish.generation else said.phase
    return _with(said, wish, DeploymentPhase.STOPPING if wish.is_deleting else phase, said.message)


def _with(status: DeploymentStatus, wish: Wish, phase: DeploymentPhase, message: str) -> DeploymentStatus:
    observed = min(status.observed, wish.generation) if status.seen_s else 0
    weights = {version.name: version.weight for version in wish.spec.versions}
    versions = tuple(
        dataclasses.replace(version, weight=weights.get(version.name, 0)) for version in status.versions
    )
    return dataclasses.replace(
        status, phase=phase, message=message, generation=wish.generation, observed=observed, versions=versions
    )


def address(wish: Wish) -> str:
    """Where clients find it."""
    gateway = wish.spec.gateway
    host = f"[{gateway.host}]" if ":" in gateway.host else gateway.host
    return f"http://{host}:{gateway.port}"


def _version(wish: Wish, name: str, replicas: Sequence[Replica], facts: VersionFacts) -> VersionStatus:
    spec = wish.spec.version(name)
    revision = wish.revisions[name][-1] if spec is not None else None
    number = 0 if revision is None else revision.number
    alive = [
        replica
        for replica in replicas
        if replica.version == name and replica.phase not in (ServerPhase.ENDED, ServerPhase.DRAINING)
    ]
    updated = [replica for replica in alive if replica.revision == number]
    ready = [replica for replica in alive if replica.phase is ServerPhase.READY]
    new_ready = [replica for replica in updated if replica.phase is ServerPhase.READY]
    is_there = len(new_ready) == len(alive) == facts.desired
    phase = DeploymentPhase.READY if is_there else DeploymentPhase.PROGRESSING
    waits = next((replica.message for replica in alive if replica.message), "")
    if not is_there and facts.trouble:
        phase = DeploymentPhase.FAILING
    return VersionStatus(
        name=name,
        phase=phase,
        revision=number,
        weight=0 if spec is None else spec.weight,
        desired=facts.desired,
        updated=len(updated),
        ready=len(ready),
        requests=facts.requests,
        failures=facts.failures,
        readings={} if spec is None or spec.autoscale is None
        else mean_readings(facts.readings, spec.autoscale.targets),
        message="" if is_there else facts.trouble or waits,
        model="" if spec is None else spec.template.model,
    )  # fmt: skip


def _server(replica: Replica) -> ServerStatus:
    backend = replica.backend
    return ServerStatus(
        name=replica.name,
        uid=replica.uid,
        version=replica.version,
        revision=replica.revision,
        phase=replica.phase,
        address=f"{backend.host}:{backend.port}" if backend.port else "",
        node=replica.node,
        in_flight=backend.in_flight,
        requests=backend.requests,
        devices=replica.template.role.resources.devices,
        created_s=replica.created_s,
        ready_s=replica.ready_s,
        message=replica.message,
    )

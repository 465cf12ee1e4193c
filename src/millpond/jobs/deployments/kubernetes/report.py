"""How a deployment on Kubernetes goes, read from its objects: the same status as the keeper's on one machine. Pure.

Counts are the Deployments' own, replicas are pods. What only a gateway of ours would know (requests, what waits) stays
zero. Called by `client` and by the operator.
"""

from __future__ import annotations

from collections.abc import Sequence

from millpond.api.deployment import (
    DeploymentPhase,
    DeploymentSpec,
    DeploymentStatus,
    ServerPhase,
    ServerStatus,
    VersionSpec,
    VersionStatus,
)
from millpond.jobs.clusters.kubernetes.kinds import Object
from millpond.jobs.clusters.kubernetes.reports import read_time
from millpond.jobs.deployments.kubernetes.render import PORT
from millpond.jobs.deployments.wish import REVISION_LABEL, VERSION_LABEL, Wish

UNFINISHED = "Its objects are not all as asked for; run the command again."
_HOPELESS = ("CrashLoopBackOff", "ImagePullBackOff", "ErrImagePull", "InvalidImageName", "CreateContainerConfigError",
             "CreateContainerError", "RunContainerError")  # fmt: skip


def read_deployment(
    wish: Wish, deployments: Sequence[Object], pods: Sequence[Object], *, is_applied: bool, now_s: float
) -> DeploymentStatus:
    """How it goes.

    Args:
        wish: What was asked for.
        deployments: Its Deployments.
        pods: Its pods.
        is_applied: Whether its objects are what the wish makes of them.
        now_s: The time.
    """
    by_name = {body["metadata"]["name"]: body for body in deployments}
    replicas = sorted((read_replica(pod) for pod in pods), key=lambda replica: (replica.version, replica.created_s))
    versions = tuple(
        _version(wish, version, by_name.get(f"{wish.spec.name}-{version.name}"), replicas)
        for version in wish.spec.versions
    )
    order = [DeploymentPhase.FAILING, DeploymentPhase.PROGRESSING, DeploymentPhase.READY]
    phase = min((version.phase for version in versions), key=order.index, default=DeploymentPhase.PROGRESSING)
    if phase is DeploymentPhase.READY and any(replica.phase is ServerPhase.DRAINING for replica in replicas):
        phase = DeploymentPhase.PROGRESSING
    is_seen = is_applied and all(_is_seen(body) for body in deployments)
    if not is_seen and phase is DeploymentPhase.READY:
        phase = DeploymentPhase.PROGRESSING
    said = next((version.message for version in versions if version.message), "")
    return DeploymentStatus(
        uid=wish.uid,
        name=wish.spec.name,
        namespace=wish.spec.namespace,
        kind=wish.spec.kind,
        phase=phase,
        address=address(wish.spec),
        generation=wish.generation,
        observed=wish.generation if is_seen else wish.generation - 1,
        created_s=wish.created_s,
        versions=versions,
        replicas=tuple(replicas),
        message=said if is_applied else UNFINISHED,
        seen_s=now_s,
    )


def address(spec: DeploymentSpec, version: str = "") -> str:
    """Where clients inside the cluster find it, or one version of it."""
    name = f"{spec.name}-{version}" if version else spec.name
    return f"http://{name}.{spec.namespace}.svc:{PORT if version else spec.gateway.port or PORT}"


def _is_seen(body: Object) -> bool:
    """Whether the cluster has looked at the newest state of a Deployment."""
    return int((body.get("status") or {}).get("observedGeneration", 0)) >= int(body["metadata"].get("generation", 1))


def _version(wish: Wish, version: VersionSpec, body: Object | None, replicas: Sequence[ServerStatus]) -> VersionStatus:
    said: Object = {} if body is None else body.get("status") or {}
    desired = version.replicas if body is None else int(body["spec"].get("replicas", 1))
    updated, ready = int(said.get("updatedReplicas", 0)), int(said.get("readyReplicas", 0))
    alive = int(said.get("replicas", 0))
    is_there = body is not None and _is_seen(body) and desired == updated == ready == alive
    trouble, waits = _trouble(said, [replica for replica in replicas if replica.version == version.name])
    phase = DeploymentPhase.READY if is_there else DeploymentPhase.FAILING if trouble else DeploymentPhase.PROGRESSING
    return VersionStatus(
        name=version.name,
        phase=phase,
        revision=wish.revision(version.name).number,
        weight=version.weight,
        desired=desired,
        updated=updated,
        ready=ready,
        message="" if is_there else trouble or waits,
        model=version.template.model,
    )


def _trouble(said: Object, replicas: Sequence[ServerStatus]) -> tuple[str, str]:
    """Why a version fails, or what it waits for."""
    hopeless = [f"{replica.name}: {replica.message}" for replica in replicas
                if replica.message.partition(":")[0] in _HOPELESS]  # fmt: skip
    late = [
        str(condition.get("message", "")) or str(condition["reason"])
        for condition in said.get("conditions") or ()
        if (condition.get("type") == "Progressing" and condition.get("status") == "False")
        or (condition.get("type") == "ReplicaFailure" and condition.get("status") == "True")
    ]
    waits = [replica.message for replica in replicas if replica.message]
    return next(iter([*hopeless, *late]), ""), next(iter(waits), "")


def read_replica(pod: Object) -> ServerStatus:
    """A pod as a replica."""
    metadata, spec, said = pod["metadata"], pod.get("spec") or {}, pod.get("status") or {}
    labels: dict[str, str] = metadata.get("labels") or {}
    conditions = {item.get("type"): item for item in said.get("conditions") or ()}
    revision = labels.get(REVISION_LABEL, "")
    container: Object = next(iter(spec.get("containers") or ()), {})
    limits = (container.get("resources") or {}).get("limits") or {}
    devices = sum(int(value) for name, value in limits.items() if "/" in name and str(value).isdigit())
    ready = conditions.get("Ready", {})
    is_ready = ready.get("status") == "True"
    port = next((item["containerPort"] for item in container.get("ports") or () if item.get("name") == "http"), PORT)
    return ServerStatus(
        name=metadata["name"],
        uid=str(metadata.get("uid", "")),
        version=labels.get(VERSION_LABEL, ""),
        revision=int(revision) if revision.isdigit() else 0,
        phase=_phase(pod, is_ready=is_ready),
        address=f"{said['podIP']}:{port}" if said.get("podIP") else "",
        node=spec.get("nodeName", ""),
        devices=devices,
        created_s=read_time(metadata.get("creationTimestamp")) or 0.0,
        ready_s=read_time(ready.get("lastTransitionTime")) if is_ready else None,
        message=_waits_for(said, conditions),
    )


def _phase(pod: Object, *, is_ready: bool) -> ServerPhase:
    said: Object = pod.get("status") or {}
    statuses = said.get("containerStatuses") or ()
    if pod["metadata"].get("deletionTimestamp"):
        return ServerPhase.DRAINING
    if said.get("phase") in ("Succeeded", "Failed"):
        return ServerPhase.ENDED
    if is_ready:
        return ServerPhase.READY
    if said.get("phase") != "Running":
        return ServerPhase.STARTING if (pod.get("spec") or {}).get("nodeName") else ServerPhase.QUEUED
    was_up = any(status.get("started") for status in statuses)  # its startup probe has passed
    return ServerPhase.UNREADY if was_up else ServerPhase.STARTING


def _waits_for(said: Object, conditions: dict[str, Object]) -> str:
    for status in said.get("containerStatuses") or ():
        waiting = (status.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in _HOPELESS:
            last = ((status.get("lastState") or {}).get("terminated") or {}).get("exitCode")
            why = waiting.get("message") or (f"it ended with code {last}" if last is not None else "")
            return f"{waiting['reason']}: {why}" if why else str(waiting["reason"])
    placed = conditions.get("PodScheduled", {})
    return str(placed.get("message", "")) if placed.get("status") == "False" else str(said.get("message", ""))

"""A deployment as objects of a Kubernetes cluster: Deployments, Services, autoscalers, and a route for the shares.

Kubernetes has all that our keeper does on one machine, so nothing of ours runs there: the objects say it. Pure. Called
by `millpond deploy render`.
"""

from __future__ import annotations

from typing import Any

from millpond.api.deployment import AutoscaleSpec, DeploymentSpec, ProbeSpec, VersionSpec
from millpond.api.job import SpecError

Object = dict[str, Any]
PORT = 8000
_NAME, _VERSION = "app.kubernetes.io/name", "millpond.io/version"
_DEVICES = "nvidia.com/gpu"
_SETTLE_S = 5  # until every proxy of the cluster knows that a pod leaves
_GRACE_S = 10
# Names of the gauges of our servers, as in `servers.GAUGES`; an adapter must offer them as pod metrics.
_GAUGES = {"queue": "millpond_scheduler_waiting_sequences", "kv": "millpond_cache_usage_ratio"}


def render(spec: DeploymentSpec, device_resource: str = _DEVICES) -> list[Object]:
    """The objects, in an order in which they can be applied.

    Args:
        spec: The deployment.
        device_resource: What nodes call an accelerator.

    Raises:
        SpecError: A version has no image, or follows what a cluster does not know.
    """
    objects: list[Object] = []
    for version in spec.versions:
        if not version.template.role.image:
            raise SpecError(
                f"versions.{version.name}.image: is missing.", fix="Name a container image.", param="image"
            )
        objects.append(_deployment(spec, version, device_resource))
        objects.append(_service(spec, f"{spec.name}-{version.name}", {_VERSION: version.name}, PORT))
        if version.autoscale is not None:
            objects.append(_autoscaler(spec, version, version.autoscale))
    objects.append(_service(spec, spec.name, {}, spec.gateway.port or PORT))
    if len(spec.versions) > 1:
        objects.append(_route(spec))
    return objects


def _meta(spec: DeploymentSpec, name: str, labels: dict[str, str]) -> Object:
    return {"name": name, "namespace": spec.namespace, "labels": {**spec.labels, _NAME: spec.name, **labels}}


def _deployment(spec: DeploymentSpec, version: VersionSpec, device_resource: str) -> Object:
    labels = {_NAME: spec.name, _VERSION: version.name}
    rollout = version.rollout
    surge, missing = rollout.max_surge, rollout.max_unavailable
    if surge in (0, "0%") and missing in (0, "0%"):
        missing = 1
    body: Object = {
        "selector": {"matchLabels": labels},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": missing}},
        "progressDeadlineSeconds": int(version.template.ready.start_s) + 60,
        "template": {
            "metadata": {"labels": {**spec.labels, **labels}},
            "spec": _pod(version, device_resource),
        },
    }
    if version.autoscale is None:
        body["replicas"] = version.replicas
    metadata = _meta(spec, f"{spec.name}-{version.name}", {_VERSION: version.name})
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": metadata, "spec": body}


def _pod(version: VersionSpec, device_resource: str) -> Object:
    role, ready = version.template.role, version.template.ready
    requests: Object = {"cpu": f"{role.resources.cpus:g}"}
    if role.resources.memory_bytes:
        requests["memory"] = str(role.resources.memory_bytes)
    resources: Object = {"requests": requests}
    if role.resources.devices:
        resources["limits"] = {device_resource: str(role.resources.devices)}
    container: Object = {
        "name": "server",
        "image": role.image,
        "command": list(role.command),
        "env": [{"name": name, "value": value} for name, value in {**role.env, "PORT": str(PORT)}.items()],
        "ports": [{"name": "http", "containerPort": PORT}],
        "readinessProbe": _probe(ready, ready.failures, ready.interval_s),
        "startupProbe": _probe(ready, max(1, int(ready.start_s / max(1.0, ready.interval_s))), ready.interval_s),
        "resources": resources,
        "lifecycle": {"preStop": {"sleep": {"seconds": _SETTLE_S}}},
    }
    if ready.give_up:
        container["livenessProbe"] = _probe(ready, ready.give_up, ready.interval_s)
    if role.working_dir:
        container["workingDir"] = role.working_dir
    grace = int(version.rollout.drain_s) + _SETTLE_S + _GRACE_S
    pod: Object = {"containers": [container], "terminationGracePeriodSeconds": grace}
    return pod | ({"nodeSelector": dict(role.node_selector)} if role.node_selector else {})


def _probe(ready: ProbeSpec, failures: int, interval_s: float) -> Object:
    asked: Object = {"httpGet": {"path": ready.path, "port": "http"}}
    action = asked if ready.path else {"tcpSocket": {"port": "http"}}
    times = {"periodSeconds": max(1, round(interval_s)), "timeoutSeconds": max(1, round(ready.timeout_s))}
    return action | times | {"failureThreshold": failures}


def _service(spec: DeploymentSpec, name: str, more: dict[str, str], port: int) -> Object:
    ports = [{"name": "http", "port": port, "targetPort": "http"}]
    body = {"selector": {_NAME: spec.name, **more}, "ports": ports}
    return {"apiVersion": "v1", "kind": "Service", "metadata": _meta(spec, name, more), "spec": body}


def _autoscaler(spec: DeploymentSpec, version: VersionSpec, rule: AutoscaleSpec) -> Object:
    if "requests" in rule.targets:
        raise SpecError(
            f"versions.{version.name}.autoscale.requests: only our own gateway counts these.",
            fix="Follow queue, kv or a gauge.", param="autoscale",
        )  # fmt: skip
    if not rule.low:
        raise SpecError(
            f"versions.{version.name}.autoscale.min: 0 needs our own gateway.", fix="Write 1.", param="autoscale"
        )
    metrics = [
        {"type": "Pods", "pods": {"metric": {"name": _GAUGES.get(target, target)},
                                  "target": {"type": "AverageValue", "averageValue": _quantity(value)}}}
        for target, value in rule.targets.items()
    ]  # fmt: skip
    name = f"{spec.name}-{version.name}"
    body: Object = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
        "minReplicas": rule.low,
        "maxReplicas": rule.high,
        "metrics": metrics,
        "behavior": {
            "scaleUp": {"stabilizationWindowSeconds": round(rule.up_s)},
            "scaleDown": {"stabilizationWindowSeconds": round(rule.down_s)},
        },
    }
    metadata = _meta(spec, name, {_VERSION: version.name})
    return {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": metadata, "spec": body}


def _quantity(value: float) -> str:
    return f"{value:g}" if value == int(value) else f"{round(value * 1000)}m"


def _route(spec: DeploymentSpec) -> Object:
    """Shares of the requests, for the Gateway API; it hangs on the Service, as service meshes take it."""
    refs = [
        {"name": f"{spec.name}-{version.name}", "port": PORT, "weight": version.weight} for version in spec.versions
    ]
    parent = {"group": "", "kind": "Service", "name": spec.name, "port": spec.gateway.port or PORT}
    body = {"parentRefs": [parent], "rules": [{"backendRefs": refs}]}
    metadata = _meta(spec, spec.name, {})
    return {"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": metadata, "spec": body}

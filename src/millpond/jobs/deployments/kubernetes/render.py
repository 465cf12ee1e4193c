"""A deployment as objects of a Kubernetes cluster: Deployments, Services, autoscalers, and a route for the shares.

Kubernetes has all that our keeper does on one machine, so nothing of ours runs there: the objects say it. Pure. Called
by `client`, by the operator for KubeDL's Inference, and by `millpond deploy render`.
"""

from __future__ import annotations

from collections.abc import Mapping

from millpond.api.deployment import AutoscaleSpec, DeploymentSpec, ProbeSpec, VersionSpec
from millpond.api.job import SpecError
from millpond.jobs.clusters.kubernetes.kinds import AUTOSCALERS, DEPLOYMENTS, ROUTES, SERVICES, Object
from millpond.jobs.clusters.kubernetes.pods import join_template
from millpond.jobs.deployments.wish import REVISION_LABEL, VERSION_LABEL

PORT = 8000
NAME_LABEL = "app.kubernetes.io/name"
DEVICES = "nvidia.com/gpu"
CONTAINER = "server"
MANAGED = "app.kubernetes.io/managed-by=millpond"
_OURS = dict([MANAGED.split("=")])
_EVERYWHERE = "0.0.0.0"  # a container has a network of its own, and probes come from outside it
_PROBES = ("readinessProbe", "startupProbe", "livenessProbe")
_SETTLE_S = 5  # until every proxy of the cluster knows that a pod leaves
_GRACE_S = 10
# Names of the gauges of our servers, as in `servers.GAUGES`; an adapter must offer them as pod metrics.
_GAUGES = {"queue": "millpond_scheduler_waiting_sequences", "kv": "millpond_cache_usage_ratio"}


def render(
    spec: DeploymentSpec, device_resource: str = DEVICES, revisions: Mapping[str, int] | None = None
) -> list[Object]:
    """The objects, in an order in which they can be applied.

    Args:
        spec: The deployment.
        device_resource: What nodes call an accelerator.
        revisions: The number of each version's template, to be found again on its pods.

    Raises:
        SpecError: A version has no image, or follows what a cluster does not know.
    """
    objects: list[Object] = []
    for version in spec.versions:
        if not version.template.role.image:
            raise SpecError(
                f"versions.{version.name}.image: is missing.", fix="Name a container image.", param="image"
            )
        marks = {} if revisions is None else {REVISION_LABEL: str(revisions[version.name])}
        objects.append(_deployment(spec, version, device_resource, marks))
        objects.append(_service(spec, f"{spec.name}-{version.name}", version.name, PORT))
        if version.autoscale is not None:
            objects.append(_autoscaler(spec, version, version.autoscale))
    served = [version for version in spec.versions if version.weight]
    only = served[0].name if len(served) == 1 and len(spec.versions) > 1 else ""
    objects.append(_service(spec, spec.name, only, spec.gateway.port or PORT))
    if len(spec.versions) > 1:
        objects.append(_route(spec))
    return objects


def _meta(spec: DeploymentSpec, name: str, labels: dict[str, str]) -> Object:
    own = {**spec.labels, **_OURS, NAME_LABEL: spec.name, **labels}
    return {"name": name, "namespace": spec.namespace, "labels": own}


def _deployment(spec: DeploymentSpec, version: VersionSpec, device_resource: str, marks: Mapping[str, str]) -> Object:
    labels = {NAME_LABEL: spec.name, VERSION_LABEL: version.name}
    rollout = version.rollout
    surge, missing = rollout.max_surge, rollout.max_unavailable
    if surge in (0, "0%") and missing in (0, "0%"):
        missing = 1
    pod: Object = {
        "metadata": {"labels": {**spec.labels, **_OURS, **labels, **marks}},
        "spec": _pod(version, device_resource),
    }
    body: Object = {
        "selector": {"matchLabels": labels},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": surge, "maxUnavailable": missing}},
        "progressDeadlineSeconds": int(version.template.ready.start_s) + 60,
        "template": _with_template(pod, version.template.pod),
    }
    if version.autoscale is None:
        body["replicas"] = version.replicas
    metadata = _meta(spec, f"{spec.name}-{version.name}", {VERSION_LABEL: version.name})
    return {"apiVersion": DEPLOYMENTS.api_version, "kind": DEPLOYMENTS.kind, "metadata": metadata, "spec": body}


def _pod(version: VersionSpec, device_resource: str) -> Object:
    role, ready = version.template.role, version.template.ready
    requests: Object = {"cpu": f"{role.resources.cpus:g}"}
    if role.resources.memory_bytes:
        requests["memory"] = str(role.resources.memory_bytes)
    resources: Object = {"requests": requests}
    if role.resources.devices:
        resources["limits"] = {device_resource: str(role.resources.devices)}
    port = role.port or PORT
    env = {**role.env, "PORT": str(port)}
    if version.template.model:
        env.setdefault("MILLPOND_SERVE_HOST", _EVERYWHERE)
    container: Object = {
        "name": CONTAINER,
        "image": role.image,
        "env": [{"name": name, "value": value} for name, value in env.items()],
        "ports": [{"name": name, "containerPort": number} for name, number in _ports(version).items()],
        "readinessProbe": _probe(ready, ready.failures, ready.interval_s),
        "startupProbe": _probe(ready, max(1, int(ready.start_s / max(1.0, ready.interval_s))), ready.interval_s),
        "resources": resources,
        "lifecycle": {"preStop": {"sleep": {"seconds": _SETTLE_S}}},
    }
    if role.command:
        container["command"] = list(role.command)
    if ready.give_up:
        container["livenessProbe"] = _probe(ready, ready.give_up, ready.interval_s)
    if role.working_dir:
        container["workingDir"] = role.working_dir
    grace = int(version.rollout.drain_s) + _SETTLE_S + _GRACE_S
    pod: Object = {"containers": [container], "terminationGracePeriodSeconds": grace}
    return pod | ({"nodeSelector": dict(role.node_selector)} if role.node_selector else {})


def _ports(version: VersionSpec) -> dict[str, int]:
    return {"http": version.template.role.port or PORT} | version.template.ports


def _with_template(made: Object, given: Object) -> Object:
    """The pod with what the user's template has beside it; his container's own probes and hooks win."""
    (own,) = made["spec"]["containers"]
    containers = (given.get("spec") or {}).get("containers") or ()
    for container in containers:
        if container.get("name", CONTAINER) != CONTAINER:
            continue
        replaced = [name for name in _PROBES if _PROBES[0] in container] + ["lifecycle"] * ("lifecycle" in container)
        for name in replaced:
            own.pop(name, None)
        for name, key in (("env", "name"), ("ports", "containerPort")):
            known = {item[key] for item in own[name]}
            own[name] = [*own[name], *(item for item in container.get(name) or () if item.get(key) not in known)]
    return join_template(made, given)


def _probe(ready: ProbeSpec, failures: int, interval_s: float) -> Object:
    asked: Object = {"httpGet": {"path": ready.path, "port": "http"}}
    action = asked if ready.path else {"tcpSocket": {"port": "http"}}
    times = {"periodSeconds": max(1, round(interval_s)), "timeoutSeconds": max(1, round(ready.timeout_s))}
    return action | times | {"failureThreshold": failures}


def _service(spec: DeploymentSpec, name: str, version: str, port: int) -> Object:
    """One version's service, or (no version) that of all."""
    more = {VERSION_LABEL: version} if version else {}
    meant = [found for found in spec.versions if version in ("", found.name)]
    others = {key: number for found in meant for key, number in found.template.ports.items()}
    ports = [{"name": "http", "port": port, "targetPort": "http"}]
    ports += [{"name": key, "port": number, "targetPort": key} for key, number in others.items() if number != port]
    body = {"selector": {**_OURS, NAME_LABEL: spec.name, **more}, "ports": ports}
    metadata = _meta(spec, name, more if name != spec.name else {})
    return {"apiVersion": SERVICES.api_version, "kind": SERVICES.kind, "metadata": metadata, "spec": body}


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
    metadata = _meta(spec, name, {VERSION_LABEL: version.name})
    return {"apiVersion": AUTOSCALERS.api_version, "kind": AUTOSCALERS.kind, "metadata": metadata, "spec": body}


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
    return {"apiVersion": ROUTES.api_version, "kind": ROUTES.kind, "metadata": metadata, "spec": body}

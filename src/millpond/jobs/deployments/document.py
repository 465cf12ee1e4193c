"""A deployment back in the form that `spec` reads, complete: what it loads again is the same deployment. Pure."""

from __future__ import annotations

from typing import Any

from millpond.api.deployment import AutoscaleSpec, DeploymentSpec, GatewaySpec, TemplateSpec, VersionSpec

Document = dict[str, Any]
_BUILT_IN = ("queue", "kv", "requests")


def document_of(spec: DeploymentSpec) -> Document:
    """The whole deployment."""
    document: Document = {
        "name": spec.name,
        "namespace": spec.namespace,
        "tenant": spec.tenant,
        "priority": spec.priority,
        "kind": spec.kind,
        "labels": dict(spec.labels),
        "host": spec.gateway.host,
        "port": spec.gateway.port,
        "gateway": _gateway(spec.gateway),
        "versions": {version.name: version_document(version) for version in spec.versions},
    }
    return {key: value for key, value in document.items() if value != {}}


def version_document(version: VersionSpec) -> Document:
    """One version."""
    rollout = version.rollout
    document = _template(version.template) | {
        "replicas": version.replicas,
        "weight": version.weight,
        "rollout": {
            "max_surge": rollout.max_surge,
            "max_unavailable": rollout.max_unavailable,
            "drain": rollout.drain_s,
        },
    }
    return document if version.autoscale is None else document | {"autoscale": _autoscale(version.autoscale)}


def _template(template: TemplateSpec) -> Document:
    role, ready = template.role, template.ready
    document: Document = {
        "model": template.model,
        "run": list(role.command),
        "env": dict(role.env),
        "working_dir": role.working_dir,
        "image": role.image,
        "devices": role.resources.devices,
        "device_type": role.resources.device_type,
        "cpus": role.resources.cpus,
        "memory": role.resources.memory_bytes,
        "node_selector": dict(role.node_selector),
        "metrics_path": template.metrics_path,
        "container_port": role.port,
        "ports": dict(template.ports),
        "template": dict(template.pod),
    }
    probe: Document = {
        "path": ready.path,
        "interval": ready.interval_s,
        "timeout": ready.timeout_s,
        "failures": ready.failures,
        "start": ready.start_s,
        "give_up": ready.give_up,
    }
    document["ready"] = {key: value for key, value in probe.items() if value != ""}
    return {key: value for key, value in document.items() if value not in ("", {}, [], None)}


def _autoscale(rule: AutoscaleSpec) -> Document:
    document: Document = {"min": rule.low, "max": rule.high, "up": rule.up_s, "down": rule.down_s,
                          "tolerance": rule.tolerance}  # fmt: skip
    document |= {name: target for name, target in rule.targets.items() if name in _BUILT_IN}
    others = {name: target for name, target in rule.targets.items() if name not in _BUILT_IN}
    return document | ({"metrics": others} if others else {})


def _gateway(gateway: GatewaySpec) -> Document:
    return {
        "concurrency": gateway.concurrency,
        "max_queue": gateway.max_queue,
        "queue_timeout": gateway.queue_timeout_s,
        "timeout": gateway.timeout_s,
        "idle_timeout": gateway.idle_timeout_s,
        "retries": gateway.retries,
    }

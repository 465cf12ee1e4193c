"""The kinds of objects the operator reads and writes, and where the API server keeps them.

A table: group, version, plural, kind. Knows nothing about their contents. Called by everything that talks to the API
server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from millpond.jobs.frameworks import FRAMEWORKS
from millpond.jobs.kubedl import CRON, INFERENCE

Object = dict[str, Any]  # an object of the API server, as JSON

OURS = "jobs.millpond.io/v1alpha1"


@dataclass(frozen=True, slots=True)
class ResourceKind:
    """A kind, and the path of its objects."""

    api_version: str
    kind: str
    plural: str
    is_namespaced: bool = True

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The path of one object, or of all in a namespace, or (no namespace) of all."""
        parts = ["/api" if "/" not in self.api_version else "/apis", self.api_version]
        if self.is_namespaced and namespace:
            parts += ["namespaces", namespace]
        return "/".join([*parts, self.plural, *filter(None, (name, subresource))])


PODS = ResourceKind("v1", "Pod", "pods")
CLAIMS = ResourceKind("v1", "PersistentVolumeClaim", "persistentvolumeclaims")
SERVICES = ResourceKind("v1", "Service", "services")
CONFIG_MAPS = ResourceKind("v1", "ConfigMap", "configmaps")
SERVICE_ACCOUNTS = ResourceKind("v1", "ServiceAccount", "serviceaccounts")
EVENTS = ResourceKind("v1", "Event", "events")
NODES = ResourceKind("v1", "Node", "nodes", is_namespaced=False)
LEASES = ResourceKind("coordination.k8s.io/v1", "Lease", "leases")
ROLES = ResourceKind("rbac.authorization.k8s.io/v1", "Role", "roles")
ROLE_BINDINGS = ResourceKind("rbac.authorization.k8s.io/v1", "RoleBinding", "rolebindings")
RESERVATIONS = ResourceKind(OURS, "Reservation", "reservations")
TOPOLOGIES = ResourceKind(OURS, "Topology", "topologies", is_namespaced=False)
MILLPOND_JOBS = ResourceKind(OURS, "MillpondJob", "millpondjobs")
CRONS = ResourceKind(CRON, "Cron", "crons")
MODEL_VERSIONS = ResourceKind("model.kubedl.io/v1alpha1", "ModelVersion", "modelversions")
INFERENCES = ResourceKind(INFERENCE, "Inference", "inferences")
DEPLOYMENTS = ResourceKind("apps/v1", "Deployment", "deployments")
AUTOSCALERS = ResourceKind("autoscaling/v2", "HorizontalPodAutoscaler", "horizontalpodautoscalers")
ROUTES = ResourceKind("gateway.networking.k8s.io/v1", "HTTPRoute", "httproutes")
TRAINING_KINDS = tuple(
    ResourceKind(framework.api_version, framework.kind, f"{framework.kind.lower()}s")
    for framework in FRAMEWORKS.values()
    if framework.has_kind
)
JOB_KINDS = (*TRAINING_KINDS, MILLPOND_JOBS, CRONS)


def find_job_kind(body: Object) -> ResourceKind | None:
    """The kind of job that an object is, or None when it is none."""
    key = (body.get("apiVersion"), body.get("kind"))
    return next((kind for kind in JOB_KINDS if (kind.api_version, kind.kind) == key), None)


def owner_of(body: Object) -> Object:
    """The reference by which an object belongs to a job: the API server removes it after the job."""
    metadata = body["metadata"]
    return {
        "apiVersion": body["apiVersion"],
        "kind": body["kind"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "controller": True,
        "blockOwnerDeletion": False,
    }

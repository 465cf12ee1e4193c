"""Objects as users write them."""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]
_FIELDS = {
    "PyTorchJob": ("pytorchReplicaSpecs", "pytorch"),
    "TFJob": ("tfReplicaSpecs", "tensorflow"),
    "MPIJob": ("mpiReplicaSpecs", "mpi"),
    "XGBoostJob": ("xgbReplicaSpecs", "xgboostjob"),
    "XDLJob": ("xdlReplicaSpecs", "xdl"),
    "MarsJob": ("marsReplicaSpecs", "mars"),
    "ElasticDLJob": ("elasticdlReplicaSpecs", "elasticdl"),
}


def template(container: str, cpu: str = "1", devices: int = 0, **more: Any) -> Object:
    """A pod template with one container."""
    asked: Object = {"cpu": cpu} | ({"nvidia.com/gpu": str(devices)} if devices else {})
    resources: Object = {"requests": asked}
    if devices:
        resources["limits"] = {"nvidia.com/gpu": str(devices)}
    made = {"name": container, "image": "train:1", "command": ["python", "train.py"], "resources": resources} | more
    return {"spec": {"containers": [made]}}


def kubedl_job(kind: str, name: str, roles: dict[str, Object | int], **spec: Any) -> Object:
    """A job of KubeDL's; a role is how many replicas, or its fields."""
    field, container = _FIELDS[kind]
    replicas = {
        role: {"template": template(container)} | (given if isinstance(given, dict) else {"replicas": given})
        for role, given in roles.items()
    }
    return {
        "apiVersion": "training.kubedl.io/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, "namespace": "default"},
        "spec": {field: replicas} | spec,
    }


def millpond_job(name: str, **spec: Any) -> Object:
    """A job in our short form."""
    return {
        "apiVersion": "jobs.millpond.io/v1alpha1",
        "kind": "MillpondJob",
        "metadata": {"name": name, "namespace": "default"},
        "spec": spec,
    }

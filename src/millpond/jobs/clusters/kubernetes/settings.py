"""The operator's settings file: YAML, strict, with the path of every mistake.

    gangScheduler: ""            # volcano, kube-batch, coscheduling, yunikorn, kubernetes; empty: Millpond does
    nodeSelector: {pool: train}
    reserved: {cpus: 1, memory: 2Gi}
    pods: {deviceAccess: env, deviceResource: nvidia.com/gpu}
    tenants:
      - {name: research, guaranteed: {devices: 4}, maximum: {devices: 8}}

Called by the package's entry.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from millpond.jobs.cluster_file import read_tenant
from millpond.jobs.clusters.kubernetes.gangs import GANG_SCHEDULERS
from millpond.jobs.clusters.kubernetes.operator import OperatorSettings
from millpond.jobs.clusters.kubernetes.pods import PodSettings
from millpond.jobs.quantities import MAX_CPUS, read_duration, read_memory, read_quantity
from millpond.jobs.spec_document import Reader, read_documents
from millpond.jobs.spec_parts import read_texts

_FIELDS = ("gangScheduler", "namespace", "nodeSelector", "nodeLostAfter", "pods", "reserved", "tenants")
_TEXTS = {
    "domain": "domain",
    "deviceResource": "device_resource",
    "deviceVariable": "device_variable",
    "schedulerName": "scheduler",
    "gitImage": "git_image",
    "kubectlImage": "kubectl_image",
    "tensorboardImage": "tensorboard_image",
}
_DEVICE_ACCESS = ("env", "plugin")


def read_settings(path: Path | None) -> OperatorSettings:
    """Reads the file, or the defaults when there is none.

    Raises:
        SpecError: The file is wrong.
    """
    if path is None:
        return OperatorSettings()
    text = path.read_text(encoding="utf-8")
    document = read_documents(text)[0] if text.strip() else Reader({}, "")
    document.check_fields(_FIELDS)
    values: dict[str, Any] = {"pods": _read_pods(document.find("pods"))}
    gang, namespace = document.find("gangScheduler"), document.find("namespace")
    if gang is not None:
        values["gang_scheduler"] = gang.one_of(["", *GANG_SCHEDULERS])
    if namespace is not None:
        values["namespace"] = namespace.text(allow_empty=True)
    lost, reserved, tenants = (document.find(name) for name in ("nodeLostAfter", "reserved", "tenants"))
    values["node_selector"] = tuple(sorted(read_texts(document.find("nodeSelector")).items()))
    if lost is not None:
        values["node_lost_s"] = read_duration(lost)
    if reserved is not None:
        cpus, memory = (reserved.check_fields(("cpus", "memory")).find(name) for name in ("cpus", "memory"))
        values["reserved_cpus"] = 0.0 if cpus is None else read_quantity(cpus, MAX_CPUS)
        values["reserved_bytes"] = 0 if memory is None else read_memory(memory)
    if tenants is not None:
        values["tenants"] = tuple(read_tenant(item) for item in tenants.items())
    return OperatorSettings(**values)


def _read_pods(reader: Reader | None) -> PodSettings:
    if reader is None:
        return PodSettings()
    reader.check_fields((*_TEXTS, "deviceAccess"))
    found = {field: reader.child(name).text(allow_empty=name == "domain") for name, field in _TEXTS.items()
             if reader.has(name)}  # fmt: skip
    access = reader.find("deviceAccess")
    return PodSettings(**found, device_access="env" if access is None else access.one_of(_DEVICE_ACCESS))

"""Arena's tables of serving jobs, made from `DeploymentStatus`: a row a version. Pure; the time is passed in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from millpond.cli.jobs.tables import age, table

if TYPE_CHECKING:
    from millpond.api.deployment import DeploymentStatus, ServerStatus, VersionStatus

LIST_HEAD = ("NAME", "TYPE", "VERSION", "DESIRED", "AVAILABLE", "ADDRESS", "PORTS", "GPU")
GET_HEAD = ("NAME", "STATUS", "AGE", "READY", "RESTARTS", "GPU", "NODE")
KINDS = {"custom-serving": "custom", "triton-serving": "triton"}
_STATUS = {"Queued": "Pending", "Starting": "Running", "Ready": "Running", "Unready": "Running",
           "Draining": "Terminating", "Ended": "Error"}  # fmt: skip


def servings(found: Sequence[DeploymentStatus]) -> Iterator[tuple[DeploymentStatus, VersionStatus]]:
    """Every version of every deployment."""
    for status in found:
        for version in status.versions:
            yield status, version


def list_table(found: Sequence[DeploymentStatus], *, with_namespace: bool = False) -> str:
    """The table of `arena serve list`."""
    rows = [
        (
            *([status.namespace] if with_namespace else []), status.name, status.kind.capitalize(), version.name,
            version.desired, version.ready, urlsplit(status.address).hostname or "N/A", _ports(status),
            sum(replica.devices for replica in _instances(status, version)),
        )
        for status, version in servings(found)
    ]  # fmt: skip
    return table((*(["NAMESPACE"] if with_namespace else []), *LIST_HEAD), rows)


def get_text(status: DeploymentStatus, version: VersionStatus, now_s: float) -> str:
    """What `arena serve get` prints."""
    total = sum(item.weight for item in status.versions)
    rows = [
        ("Name", status.name), ("Namespace", status.namespace), ("Type", status.kind.capitalize()),
        ("Version", version.name), ("Desired", version.desired), ("Available", version.ready),
        ("Age", age(now_s - status.created_s)), ("Address", urlsplit(status.address).hostname or "N/A"),
        ("Port", _ports(status)),
        ("Traffic", f"{100 * version.weight / total:.3g}%" if total and len(status.versions) > 1 else ""),
        ("Waiting", version.message),
    ]  # fmt: skip
    lines = [f"{label + ':':<12}{value}" for label, value in rows if value != ""]
    instances = [
        (replica.name, _STATUS[replica.phase.value], age(now_s - replica.created_s),
         "1/1" if replica.phase.value == "Ready" else "0/1", 0, replica.devices, replica.node or "N/A")
        for replica in _instances(status, version)
    ]  # fmt: skip
    return "\n".join([*lines, "", "Instances:", table(GET_HEAD, instances, ruler=True, indent="  ")])


def serving_document(status: DeploymentStatus, version: VersionStatus, now_s: float) -> dict[str, object]:
    """A version under the keys of `arena serve list -o json`."""
    instances = list(_instances(status, version))
    return {
        "name": status.name,
        "namespace": status.namespace,
        "type": status.kind.capitalize(),
        "version": version.name,
        "age": f"{int(now_s - status.created_s)}s",
        "desiredInstances": version.desired,
        "availableInstances": version.ready,
        "endpoints": [{"name": "restful", "port": urlsplit(status.address).port, "node_port": 0}],
        "ip": urlsplit(status.address).hostname,
        "requestGPUs": sum(replica.devices for replica in instances),
        "weight": version.weight,
        "message": version.message,
        "instances": [
            {
                "name": replica.name,
                "status": _STATUS[replica.phase.value],
                "age": f"{int(now_s - replica.created_s)}s",
                "readyContainer": int(replica.phase.value == "Ready"),
                "totalContainer": 1,
                "restartCount": 0,
                "nodeName": replica.node or "N/A",
                "ip": replica.address.rpartition(":")[0],
                "requestGPUs": replica.devices,
            }
            for replica in instances
        ],
    }


def _instances(status: DeploymentStatus, version: VersionStatus) -> Iterator[ServerStatus]:
    return (replica for replica in status.replicas if replica.version == version.name)


def _ports(status: DeploymentStatus) -> str:
    return f"RESTFUL:{urlsplit(status.address).port}"

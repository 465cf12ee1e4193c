"""From a Node of the API server, and the Topology that its agent posted, to what the scheduler knows. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from millpond.api.topology import plain_wiring
from millpond.base.errors import MillpondError
from millpond.jobs.clusters.kubernetes.kinds import Object
from millpond.jobs.clusters.kubernetes.reports import read_time
from millpond.jobs.clusters.kubernetes.topology import with_topology
from millpond.jobs.looking import NodeStatus
from millpond.jobs.quantities import MAX_CPUS, MAX_DEVICES, MAX_MEMORY, is_device, read_quantity
from millpond.jobs.scheduling.types import NodeSpec
from millpond.jobs.spec_document import Reader

_DEVICE_TYPE_LABELS = ("jobs.millpond.io/device-type", "nvidia.com/gpu.product", "aliyun.accelerator/nvidia_name",
                       "node.kubernetes.io/accelerator")  # fmt: skip
_RACK_LABELS = ("topology.kubernetes.io/rack", "topology.kubernetes.io/block", "topology.kubernetes.io/zone")
_OURS_TAINT = "jobs.millpond.io/dedicated"


def read_node(node: Object, topology: Object | None, reserved_cpus: float = 0.0, reserved_bytes: int = 0) -> NodeSpec:
    """A machine as the scheduler knows it.

    Args:
        node: The Node.
        topology: What its agent posted; without it devices are taken for equal.
        reserved_cpus: Processors kept from jobs, for daemons.
        reserved_bytes: Memory kept from jobs.

    Raises:
        MillpondError: The topology is wrong, or contradicts the node.
    """
    name = node["metadata"]["name"]
    labels: dict[str, str] = node["metadata"].get("labels") or {}
    offered: Object = (node.get("status") or {}).get("allocatable") or {}
    path = f"node {name}.status.allocatable"
    devices = sum(
        int(read_quantity(Reader(value, f"{path}.{key}"), MAX_DEVICES))
        for key, value in offered.items()
        if is_device(key)
    )
    cpus = read_quantity(Reader(str(offered.get("cpu", "0")), f"{path}.cpu"), MAX_CPUS)
    memory = int(read_quantity(Reader(str(offered.get("memory", "0")), f"{path}.memory"), MAX_MEMORY))
    spec = NodeSpec(
        name=name,
        wiring=plain_wiring(devices),
        device_type=next((labels[key] for key in _DEVICE_TYPE_LABELS if key in labels), None),
        cpus=max(0.0, cpus - reserved_cpus),
        memory_bytes=max(0, memory - reserved_bytes),
        rack=next((labels[key] for key in _RACK_LABELS if key in labels), ""),
        labels=tuple(sorted(labels.items())),
    )
    if topology is None:
        return spec
    found = with_topology(spec, topology)
    if devices and found.wiring.num_devices != devices and found.wiring.num_devices - len(found.broken) != devices:
        raise MillpondError(
            f"The Topology of {name} has {found.wiring.num_devices} devices and the node offers {devices}.",
            fix="Start the agent on that node again.",
        )
    return found


def describe_node(node: Object, topologies: Mapping[str, Object]) -> NodeStatus:
    """A machine for people; one whose description is wrong is shown without what cannot be read."""
    name, status = node["metadata"]["name"], node.get("status") or {}
    addresses = {one.get("type"): one.get("address", "") for one in status.get("addresses") or ()}
    address = addresses.get("InternalIP") or addresses.get("Hostname") or ""
    try:
        spec = read_node(node, topologies.get(name))
    except MillpondError:
        return NodeStatus(name, address, 0.0, 0, 0, "", is_up=False)
    devices = spec.wiring.num_devices - len(spec.broken)
    return NodeStatus(
        name, address, spec.cpus, spec.memory_bytes, devices, spec.device_type or "", is_up=is_usable(node)
    )


def is_usable(node: Object) -> bool:
    """Whether new pods may go there: not cordoned, and no taint that keeps pods away but the one that says it is ours.

    Pods are bound by us, so the kubelet alone would look at taints, and only at those that evict.
    """
    spec = node.get("spec") or {}
    taints = [t for t in spec.get("taints") or () if t.get("effect") in ("NoSchedule", "NoExecute")]
    return not spec.get("unschedulable") and all(taint.get("key") == _OURS_TAINT for taint in taints) and is_ready(node)


def is_ready(node: Object) -> bool:
    """Whether the kubelet says that it works."""
    return _ready(node).get("status") == "True"


def unready_since_s(node: Object) -> float | None:
    """Since when it has not been ready; None while it is."""
    return None if is_ready(node) else read_time(_ready(node).get("lastTransitionTime")) or 0.0


def _ready(node: Object) -> Object:
    conditions: list[Object] = (node.get("status") or {}).get("conditions") or []
    return next((one for one in conditions if one.get("type") == "Ready"), {})

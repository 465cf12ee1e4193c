"""What the local cluster offers: `cluster.yaml` in the jobs directory, or what the machine has.

    slots: 8                 # processors that jobs can ask for
    memory: 16GiB
    devices: 8               # accelerators, and their model
    device_type: V100
    tenants:
      - {name: research, guaranteed: {devices: 4}, maximum: {devices: 8}}
    database: postgresql://jobs@db.example.com/jobs   # a file in the jobs directory unless it is named
    data:
      - {name: imagenet, path: /data/imagenet, description: 1000 classes}

Called by `jobs.service`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from millpond.api.topology import plain_wiring
from millpond.base.machine import read_machine
from millpond.jobs.quantities import MAX_CPUS, MAX_DEVICES, read_memory, read_quantity
from millpond.jobs.scheduling.types import NodeSpec, TenantSpec
from millpond.jobs.spec_document import Reader, read_documents
from millpond.jobs.spec_parts import read_texts

_LEAST_SLOTS = 8  # a laptop's jobs mostly wait for each other, not for processors
_FIELDS = ("data", "database", "slots", "memory", "devices", "device_type", "labels", "tenants")
_TENANT = ("name", "parent", "guaranteed", "maximum", "weight", "can_borrow", "can_lend")


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """The machine as a node, and the tree of tenants."""

    node: NodeSpec
    tenants: tuple[TenantSpec, ...] = ()


@dataclass(frozen=True, slots=True)
class Dataset:
    """A directory with data, under a name."""

    name: str
    path: str
    description: str = ""


def read_data(path: Path) -> list[Dataset]:
    """The datasets that the file declares."""
    if not path.exists():
        return []
    found = read_documents(path.read_text(encoding="utf-8"))[0].find("data")
    items = [] if found is None else [item.check_fields(("name", "path", "description")) for item in found.items()]
    return [
        Dataset(
            item.need("name").text(),
            item.need("path").text(),
            item.child("description").text() if item.has("description") else "",
        )
        for item in items
    ]


def read_database(path: Path) -> str | None:
    """The URL of the database that the file names; None: a file in the jobs directory."""
    if not path.exists():
        return None
    found = read_documents(path.read_text(encoding="utf-8"))[0].find("database")
    return None if found is None else found.text()


def read_cluster(path: Path, name: str, slots: float | None = None, devices: int | None = None) -> ClusterSettings:
    """Reads the file if there is one; what is given here wins over it.

    Raises:
        SpecError: The file is wrong.
    """
    document = read_documents(path.read_text(encoding="utf-8"))[0] if path.exists() else Reader({}, "")
    document.check_fields(_FIELDS)
    machine = read_machine()
    fields = {field: document.find(field) for field in _FIELDS}
    if slots is None:
        found = fields["slots"]
        slots = float(max(_LEAST_SLOTS, 2 * machine.usable_cores)) if found is None else read_quantity(found, MAX_CPUS)
    if devices is None:
        devices = 0 if fields["devices"] is None else fields["devices"].integer(0, MAX_DEVICES)
    kind, memory = fields["device_type"], fields["memory"]
    labels = {"kubernetes.io/hostname": name} | read_texts(fields["labels"])
    node = NodeSpec(
        name=name,
        wiring=plain_wiring(devices),
        device_type=None if kind is None else kind.text(),
        cpus=slots,
        memory_bytes=machine.memory_total if memory is None else read_memory(memory),
        labels=tuple(sorted(labels.items())),
    )
    tenants = fields["tenants"]
    return ClusterSettings(node, () if tenants is None else tuple(read_tenant(item) for item in tenants.items()))


def read_tenant(reader: Reader) -> TenantSpec:
    """A tenant in the tree of quotas."""
    reader.check_fields(_TENANT)
    parent, weight = reader.find("parent"), reader.find("weight")
    borrow, lend = reader.find("can_borrow"), reader.find("can_lend")
    return TenantSpec(
        name=reader.need("name").text(),
        parent=None if parent is None else parent.text(),
        guaranteed=_read_quota(reader.find("guaranteed")),
        maximum=_read_quota(reader.find("maximum")),
        weight=1.0 if weight is None else weight.number(0.001),
        can_borrow=True if borrow is None else borrow.flag(),
        can_lend=True if lend is None else lend.flag(),
    )


def _read_quota(reader: Reader | None) -> dict[str, float]:
    quota: dict[str, float] = {}
    for key, amount in () if reader is None else reader.entries():
        if key not in ("devices", "cpus", "memory") and not key.startswith("devices/"):
            raise amount.fail("there is no such resource.", "Known are devices, devices/MODEL, cpus, memory.")
        quota["memory_bytes" if key == "memory" else key] = (
            float(read_memory(amount)) if key == "memory" else amount.number(0)
        )
    return quota

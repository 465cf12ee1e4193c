"""Amounts as specifications write them: processors, memory, devices, durations.

Kubernetes' forms ("500m", "4Gi") and ours ("4GiB", "1h30m"). Pure; every complaint carries the field's path.
"""

from __future__ import annotations

import math
import re

from millpond.api.job import Resources
from millpond.base.units import parse_bytes
from millpond.jobs.spec_document import Reader

_QUANTITY = re.compile(r"(\d{1,18}(?:\.\d{0,9})?)(m|k|M|G|T|P|Ki|Mi|Gi|Ti|Pi|e\d{1,2}|E\d{1,2})?")
_FACTORS = {"": 1.0, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15,
            "Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50}  # fmt: skip
_DURATION = re.compile(r"(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9}(?:\.\d{1,6})?)s?)?")
_DEVICE = re.compile(r"[a-z0-9.-]+/(gpu|npu|mlu|dcu|ascend\w*|cambricon\w*|accelerator)", re.IGNORECASE)
MAX_CPUS = 4096.0
MAX_MEMORY = 1 << 50
MAX_DEVICES = 65536


def read_quantity(reader: Reader, high: float) -> float:
    """A Kubernetes quantity: 2, 0.5, "500m", "4Gi"."""
    if isinstance(reader.value, int | float):
        return reader.number(0, high)
    match = _QUANTITY.fullmatch(reader.text().strip())
    if match is None:
        raise reader.fail(f"'{reader.text()[:40]}' is not an amount.", "Write 2, 0.5, 500m, 4Gi.")
    suffix = match[2] or ""
    factor = _FACTORS.get(suffix)
    value = float(match[1]) * (10.0 ** int(suffix[1:]) if factor is None else factor)
    if not math.isfinite(value) or value > high:
        raise reader.fail(f"{reader.text()[:40]} is too much.")
    return value


def read_memory(reader: Reader) -> int:
    """Memory in bytes: 1073741824, "1Gi", "1GiB"."""
    if isinstance(reader.value, str) and reader.value.strip().casefold().endswith("b"):
        try:
            size = parse_bytes(reader.value)
        except ValueError as error:
            raise reader.fail(f"{error}.") from None
        if size > MAX_MEMORY:
            raise reader.fail(f"{reader.value[:40]} is too much.")
        return size
    return int(read_quantity(reader, MAX_MEMORY))


def read_duration(reader: Reader) -> float:
    """Seconds: 90, "90s", "1h30m", "2d"."""
    if isinstance(reader.value, int | float):
        return reader.number(0)
    text = reader.text().strip()
    match = _DURATION.fullmatch(text)
    if match is None or not text:
        raise reader.fail(f"'{text[:40]}' is not a duration.", "Write seconds, or 90s, 30m, 1h30m, 2d.")
    days, hours, minutes, seconds = (float(part) if part else 0.0 for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def is_device(resource: str) -> bool:
    """Whether a Kubernetes resource name counts accelerators."""
    return _DEVICE.fullmatch(resource) is not None


def read_resources(reader: Reader | None) -> Resources:
    """A container's `resources`: requests, else limits. A container that asks for nothing counts as one processor."""
    if reader is None:
        return Resources()
    reader.check_fields(("requests", "limits", "claims"))
    amounts: dict[str, Reader] = {}
    for part in ("limits", "requests"):
        found = reader.find(part)
        amounts |= dict(found.entries()) if found is not None else {}
    cpus, memory, devices = 1.0, 0, 0
    for name, amount in amounts.items():
        if name == "cpu":
            cpus = read_quantity(amount, MAX_CPUS)
        elif name == "memory":
            memory = read_memory(amount)
        elif is_device(name):
            devices += read_devices(amount)
        elif "/" not in name and name not in ("ephemeral-storage",) and not name.startswith("hugepages-"):
            raise amount.fail("there is no such resource.", "Known are cpu, memory and names like nvidia.com/gpu.")
    return Resources(devices=devices, cpus=cpus, memory_bytes=memory)


def read_devices(reader: Reader) -> int:
    """A whole number of accelerators, also as Kubernetes' text "1"."""
    if isinstance(reader.value, str) and reader.value.isascii() and reader.value.isdigit() and len(reader.value) < 9:
        return Reader(int(reader.value), reader.path).integer(0, MAX_DEVICES)
    return reader.integer(0, MAX_DEVICES)

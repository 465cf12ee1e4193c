"""What stands beside every measured figure: the machine, the versions, and how fast it read memory just then.

Used by the comparisons and the kernel benchmarks; measures with the doctor's own tools.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import numpy as np

from millpond.base.machine import read_machine
from millpond.inference.ops import native

READ_BYTES = 512 << 20
PACKAGES = ("millpond", "torch", "numpy")


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory and versions, as JSON."""
    machine = read_machine()
    return {
        "cpu": machine.cpu_model,
        "isa": machine.isa,
        "cores": machine.usable_cores,
        "memory_bytes": machine.memory_total,
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def read_bandwidth(threads: int | None = None, repeats: int = 5) -> float:
    """Bytes a second that all threads together read now, the best of a few passes over half a gigabyte."""
    threads = threads or read_machine().usable_cores
    data = np.ones(READ_BYTES, dtype=np.uint8)
    return max(data.nbytes / native.read_seconds(threads, data) for _ in range(repeats))


def foreign_share(before: tuple[float, float], after: tuple[float, float], own_seconds: float) -> float:
    """Share of all processor time between two `processor_seconds` that others took, 0 to 1."""
    total, busy = after[0] - before[0], after[1] - before[1]
    return min(1.0, max(0.0, (busy - own_seconds) / total)) if total > 0 else 0.0


def processor_seconds() -> tuple[float, float]:
    """(all, busy) seconds of all processors since the machine started."""
    with open("/proc/stat", encoding="ascii") as file:
        fields = [int(word) for word in file.readline().split()[1:9]]
    tick = os.sysconf("SC_CLK_TCK")
    return sum(fields) / tick, (sum(fields) - fields[3] - fields[4]) / tick

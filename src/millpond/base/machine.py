"""What this machine has and what this process may use of it: instruction sets, cores, memory, and who limits them.

Reads /proc, /sys and the control groups, v1 and v2; `root` lets a test hand in another machine's files. It decides
nothing. Called by `millpond doctor` and by whoever resolves a config against the hardware.
"""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

# Best first; a set counts only when all its flags are there.
_ISA_FLAGS = {
    "amx": {"amx_tile", "amx_bf16", "amx_int8", "avx512_bf16", "avx512_vnni", "avx512f", "avx512bw", "avx512vl"},
    "avx512_bf16": {"avx512_bf16", "avx512_vnni", "avx512f", "avx512bw", "avx512vl", "avx512dq"},
    "avx512": {"avx512f", "avx512bw", "avx512vl", "avx512dq"},
    "avx2": {"avx2", "fma", "f16c"},
}
_NO_LIMIT = 1 << 60  # control groups of version 1 write a number near 2^63 for "no limit"


@dataclass(frozen=True, slots=True)
class MachineInfo:
    """The machine as this process sees it. Sizes are bytes; None: there is no such limit, or it cannot be read.

    Attributes:
        isa: The best instruction set of ours that the processor has: amx, avx512_bf16, avx512, avx2 or none.
        allowed_cpus: Logical processors this process may run on.
        physical_cores: Cores behind those.
        cpu_quota: Processors' worth of time the control group grants.
    """

    cpu_model: str
    architecture: str
    isa: str
    cpu_flags: frozenset[str]
    logical_cpus: int
    allowed_cpus: tuple[int, ...]
    physical_cores: int
    cpu_quota: float | None
    memory_total: int
    memory_available: int
    memory_limit: int | None
    last_level_cache: int | None

    @property
    def usable_cores(self) -> int:
        """Cores that can compute at the same time: physical, allowed, and granted."""
        cores = self.physical_cores
        return max(1, min(cores, int(self.cpu_quota)) if self.cpu_quota is not None else cores)


def read_machine(root: Path = Path("/"), allowed_cpus: Iterable[int] | None = None) -> MachineInfo:
    """Reads the machine's facts.

    Args:
        root: Where /proc and /sys stand.
        allowed_cpus: Processors this process may use; None asks the kernel.
    """
    cpus = _parse_cpuinfo(_read(root / "proc/cpuinfo"))
    allowed = tuple(sorted(os.sched_getaffinity(0) if allowed_cpus is None else allowed_cpus))
    first = next(iter(cpus.values()), {})
    flags = frozenset(first.get("flags", "").split())
    memory = _parse_meminfo(_read(root / "proc/meminfo"))
    limit, used = _memory_limit(root)
    available = memory.get("MemAvailable", 0)
    if limit is not None:
        available = min(available, max(0, limit - used))
    return MachineInfo(
        cpu_model=first.get("model name", platform.processor() or "unknown"),
        architecture=platform.machine(),
        isa=next((isa for isa, needed in _ISA_FLAGS.items() if needed <= flags), "none"),
        cpu_flags=flags,
        logical_cpus=len(cpus) or len(allowed),
        allowed_cpus=allowed,
        physical_cores=_count_cores(root, allowed),
        cpu_quota=_cpu_quota(root),
        memory_total=memory.get("MemTotal", 0),
        memory_available=available,
        memory_limit=limit,
        last_level_cache=_last_level_cache(root),
    )


def request_amx() -> bool | None:
    """Asks the kernel to let this process use AMX tiles; None where there is no such call.

    The kernel grants it for the whole process and its children, or refuses (old kernel, container policy).
    """
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return None
    syscall_arch_prctl, request_permission, tile_data = 158, 0x1023, 18
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.syscall(syscall_arch_prctl, request_permission, tile_data) == 0)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _parse_cpuinfo(text: str) -> dict[int, dict[str, str]]:
    cpus: dict[int, dict[str, str]] = {}
    for stanza in text.split("\n\n"):
        pairs = (line.partition(":") for line in stanza.splitlines())
        row = {key.strip(): value.strip() for key, _, value in pairs}
        if row.get("processor", "").isdigit():
            cpus[int(row["processor"])] = row
    return cpus


def _parse_meminfo(text: str) -> dict[str, int]:
    rows = (line.split() for line in text.splitlines())
    return {row[0].rstrip(":"): int(row[1]) * 1024 for row in rows if len(row) >= 2 and row[1].isdigit()}


def _count_cores(root: Path, allowed: tuple[int, ...]) -> int:
    siblings = {_read(root / f"sys/devices/system/cpu/cpu{cpu}/topology/core_cpus_list").strip() for cpu in allowed}
    return len(allowed) if "" in siblings else len(siblings)


def _groups(root: Path, controller: str) -> list[Path]:
    """Directories of this process's control group, innermost first, whose files may hold a limit."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        names, _, group = rest.partition(":")
        if controller in names.split(",") and (root / "sys/fs/cgroup" / controller).is_dir():
            return _with_parents(root / "sys/fs/cgroup" / controller, group)
        if names == "" and (root / "sys/fs/cgroup/cgroup.controllers").exists():
            return _with_parents(root / "sys/fs/cgroup", group)
    return []


def _with_parents(base: Path, group: str) -> list[Path]:
    parts = [part for part in group.split("/") if part not in ("", "..")]
    return [base.joinpath(*parts[:length]) for length in range(len(parts), -1, -1)]


def _cpu_quota(root: Path) -> float | None:
    quotas = []
    for group in _groups(root, "cpu"):
        words = _read(group / "cpu.max").split()
        if not words:
            words = [_read(group / "cpu.cfs_quota_us").strip(), _read(group / "cpu.cfs_period_us").strip()]
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]) > 0:
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def _memory_limit(root: Path) -> tuple[int | None, int]:
    """The tightest limit of our control groups and what that group uses of it."""
    tightest: tuple[int | None, int] = (None, 0)
    for group in _groups(root, "memory"):
        for limit_name, used_name in (
            ("memory.max", "memory.current"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes"),
        ):
            text, used = _read(group / limit_name).strip(), _read(group / used_name).strip()
            if not text.isdigit() or int(text) >= _NO_LIMIT:
                continue
            if tightest[0] is None or int(text) < tightest[0]:
                tightest = (int(text), int(used) if used.isdigit() else 0)
    return tightest


def _last_level_cache(root: Path) -> int | None:
    sizes = {}
    for index in (root / "sys/devices/system/cpu/cpu0/cache").glob("index*"):
        level, size = _read(index / "level").strip(), _read(index / "size").strip()
        if level.isdigit() and size.endswith("K") and size[:-1].isdigit():
            sizes[int(level)] = int(size[:-1]) * 1024
    return sizes[max(sizes)] if sizes else None

"""Judges the facts: what is wrong or slow on this machine, why, and what to do. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from millpond.base.units import format_bytes
from millpond.cli.doctor.facts import Facts

if TYPE_CHECKING:
    from millpond.cli.doctor.bandwidth import Bandwidth

Level = Literal["error", "slow", "note"]

_LITTLE_MEMORY = 2 << 30
_LITTLE_DISK = 1 << 30
_SLOW_BANDWIDTH = 5e9  # below one channel of old desktop memory


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing to know: `error` stops Millpond, `slow` costs speed, `note` is for information."""

    level: Level
    what: str
    fix: str = ""


def judge(facts: Facts, bandwidth: Bandwidth | None) -> list[Finding]:
    """Returns the findings, worst first."""
    found = [
        *_packages(facts),
        *_native(facts),
        *_instructions(facts),
        *_cores(facts),
        *_memory(facts, bandwidth),
        *_kernel(facts),
    ]
    rank = {"error": 0, "slow": 1, "note": 2}
    return sorted(found, key=lambda finding: rank[finding.level])


def _packages(facts: Facts) -> Iterator[Finding]:
    missing = [name for name, version in facts.versions.items() if version is None]
    if "uvloop" in missing:
        missing.remove("uvloop")
        yield Finding("slow", "uvloop is not installed, so the HTTP server uses the slower event loop.", _SERVE_EXTRA)
    if missing:
        yield Finding("error", f"Not installed: {', '.join(missing)}.", "Run `pip install .` in Millpond's directory.")


def _native(facts: Facts) -> Iterator[Finding]:
    if facts.machine.architecture not in ("x86_64", "AMD64"):
        what = f"There are no native ops for {facts.machine.architecture}, so the torch reference runs every step."
        yield Finding("slow", what)
    elif facts.native.error is not None:
        fix = (
            "Install Millpond again."
            if facts.compiler
            else "Install g++ (Debian: apt-get install g++), then Millpond again."
        )
        yield Finding(
            "slow", f"The torch reference runs every step, for want of native ops: {facts.native.error}.", fix
        )


def _instructions(facts: Facts) -> Iterator[Finding]:
    machine = facts.machine
    if machine.isa == "none" and machine.architecture == "x86_64":
        yield Finding("slow", "The processor lacks AVX2, so the torch reference runs every step.")
    elif machine.isa == "avx2":
        yield Finding("slow", "The processor has AVX2 but not AVX-512: long prompts take several times longer.")
    elif machine.isa in ("avx512", "avx512_bf16"):
        yield Finding("note", "The processor has no AMX: long prompts are computed with AVX-512.")
    if facts.amx_permitted is False:
        fix = "Use Linux 5.16 or later and a container policy that allows arch_prctl."
        yield Finding("slow", "The processor has AMX but the kernel refuses it to this process.", fix)


def _cores(facts: Facts) -> Iterator[Finding]:
    machine = facts.machine
    allowed = len(machine.allowed_cpus)
    if allowed < machine.logical_cpus:
        what = f"This process may run on {allowed} of {machine.logical_cpus} processors."
        yield Finding("slow", what, "Widen its CPU affinity (taskset, cpuset) if that was not meant.")
    if machine.cpu_quota is not None and machine.cpu_quota < allowed:
        what = f"The control group grants {machine.cpu_quota:g} processors' worth of time to {allowed} processors."
        yield Finding("slow", what, "Raise the container's CPU limit.")
    if machine.usable_cores == 1:
        yield Finding("slow", "One core computes and answers clients at the same time.", "Give it two or more.")
    if facts.busy_cores > 0.5 * machine.usable_cores:
        what = f"Other work kept {facts.busy_cores:.1f} of {machine.usable_cores} cores busy over the last minute."
        yield Finding("slow", what, "Stop it: a step waits for its slowest thread.")


def _memory(facts: Facts, bandwidth: Bandwidth | None) -> Iterator[Finding]:
    machine = facts.machine
    free = format_bytes(machine.memory_available)
    if machine.memory_available < _LITTLE_MEMORY:
        fix = "Stop other programs or raise the container's limit: the default model needs 2 GiB."
        yield Finding("error", f"Only {free} of memory are free.", fix)
    if facts.free_disk < _LITTLE_DISK:
        fix = "Free some, or set MILLPOND_CACHE to another disk."
        yield Finding("error", f"Only {format_bytes(facts.free_disk)} are free under {facts.cache_dir}.", fix)
    if bandwidth is not None and bandwidth.all_threads < _SLOW_BANDWIDTH:
        rate = f"{bandwidth.all_threads / 1e9:.1f} GB/s"
        what = f"Memory is read at {rate}, and a token can come no faster than the weights it needs."
        yield Finding("slow", what, "Prefer int8 weights (--dtype int8).")


def _kernel(facts: Facts) -> Iterator[Finding]:
    if facts.governor == "powersave":
        yield Finding("slow", "The processor's governor is powersave.", "Set it to performance (cpupower).")
    if facts.huge_pages == "never":
        what = "Transparent huge pages are off: reading weights costs more page look-ups."
        yield Finding("slow", what, "Write madvise to /sys/kernel/mm/transparent_hugepage/enabled.")


_SERVE_EXTRA = "Install Millpond with its `serve` extra: pip install '.[serve]'."

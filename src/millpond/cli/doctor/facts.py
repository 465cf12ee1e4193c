"""Collects what the doctor judges: the machine, the versions, the compiler, the native library, the kernel's settings.

Measures nothing and judges nothing. Imports neither torch nor the engine; versions come from the installed packages.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from millpond.base.machine import MachineInfo, read_machine, request_amx
from millpond.config import env

PACKAGES = ("millpond", "torch", "numpy", "tokenizers", "safetensors", "llguidance", "starlette", "uvicorn", "uvloop")
_COMPILERS = ("c++", "g++", "clang++")


@dataclass(frozen=True, slots=True)
class NativeState:
    """The native op library: where it is, or why it cannot be used."""

    path: str | None
    error: str | None


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything `judge` looks at. `amx_permitted` is None where there is no AMX to ask for.

    Attributes:
        busy_cores: Cores' worth of work waiting or running over the last minute (the load average).
        free_disk: Bytes free where fetched models are kept.
    """

    machine: MachineInfo
    amx_permitted: bool | None
    python: str
    versions: dict[str, str | None]
    compiler: str | None
    native: NativeState
    busy_cores: float
    governor: str | None
    huge_pages: str | None
    cache_dir: str
    free_disk: int


def collect(root: Path = Path("/")) -> Facts:
    """Reads all facts; takes a few milliseconds."""
    machine = read_machine(root)
    cache = env.cache_dir()
    return Facts(
        machine=machine,
        amx_permitted=request_amx() if "amx_tile" in machine.cpu_flags else None,
        python=platform.python_version(),
        versions={name: _version(name) for name in PACKAGES},
        compiler=find_compiler(),
        native=native_state(),
        busy_cores=_load(root),
        governor=_word(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        huge_pages=_chosen(_word(root / "sys/kernel/mm/transparent_hugepage/enabled")),
        cache_dir=str(cache),
        free_disk=shutil.disk_usage(_existing(cache)).free,
    )


def find_compiler() -> str | None:
    """Returns the first line a C++ compiler says of itself, or None when there is none."""
    for name in _COMPILERS:
        path = shutil.which(name)
        if path is None:
            continue
        try:
            done = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=10, check=True)
        except (OSError, subprocess.SubprocessError):
            continue
        return (done.stdout.splitlines() or [name])[0]
    return None


def native_state() -> NativeState:
    """Says whether the native library was built and whether the system can load it."""
    import ctypes

    spec = importlib.util.find_spec("millpond.inference.ops")
    places = [Path(place) for place in (spec.submodule_search_locations or ())] if spec else []
    found = [file for place in places for file in sorted(place.glob("_native*.so"))]
    if not found:
        return NativeState(
            None, "it was not built: no C++ compiler was found, or it failed, when Millpond was installed"
        )
    try:
        ctypes.CDLL(str(found[0]))
    except OSError as error:
        return NativeState(str(found[0]), f"the system cannot load it: {error}")
    return NativeState(str(found[0]), None)


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _load(root: Path) -> float:
    word = (_word(root / "proc/loadavg") or "0").split()[0]
    return float(word)


def _word(path: Path) -> str | None:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return None


def _chosen(text: str | None) -> str | None:
    """The kernel writes a choice as `always [madvise] never`."""
    if text is None or "[" not in text:
        return text
    return text[text.index("[") + 1 : text.index("]")]


def _existing(path: Path) -> Path:
    return next(place for place in (path, *path.parents) if place.exists())

"""Where a model repository keeps what: names, version folders, files, and whether something has changed.

Pure reading of directories; every name and relative path that may come from a client passes `check_name` or
`check_relative` first. Nothing here knows what is inside the files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath

from millpond.serve.servables.config import VersionPolicy
from millpond.serve.servables.errors import ServableError

_MAX_FILES = 10_000  # of one version, when looking for changes
_MAX_CONFIG_BYTES = 64 << 20

Fingerprint = tuple[tuple[str, int, int], ...]
"""Relative path, time of the last change in nanoseconds, and size of every file."""


def is_name(name: str) -> bool:
    """Whether a model may be called so: one folder's name, nothing that leads elsewhere."""
    return bool(name) and name not in (".", "..") and not any(sign in name for sign in "/\\\0") and len(name) <= 255


def check_relative(path: str) -> str:
    """Returns a path inside a model's folder as it was given.

    Raises:
        ServableError: It leads out of the folder.
    """
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or "\\" in path or "\0" in path or any(part == ".." for part in parts):
        raise ServableError("invalid_argument", f"file path '{path[:200]}' leads out of the model's folder")
    return path


def find_models(paths: Sequence[Path]) -> dict[str, list[Path]]:
    """Returns the folders of every model by name; more than one is a name that several repositories use."""
    found: dict[str, list[Path]] = {}
    for path in paths:
        for folder in sorted(path.iterdir()):
            if folder.is_dir() and is_name(folder.name) and not folder.name.startswith("."):
                found.setdefault(folder.name, []).append(folder)
    return found


def find_versions(folder: Path) -> list[int]:
    """Returns the numbers of the version folders, sorted. Other folders are none of our business."""
    return sorted(int(entry.name) for entry in folder.iterdir() if _is_version(entry.name) and entry.is_dir())


def versions_of_files(files: Iterable[str]) -> list[int]:
    """Returns the versions that files of a load request belong to, sorted."""
    first_parts = {PurePosixPath(path).parts[0] for path in files}
    return sorted(int(part) for part in first_parts if _is_version(part))


def choose_versions(policy: VersionPolicy, versions: Sequence[int]) -> list[int]:
    """Returns the versions that the policy serves, sorted."""
    if policy.specific:
        return sorted(set(policy.specific) & set(versions))
    if policy.latest > 0:
        return sorted(versions)[-policy.latest :]
    return sorted(versions)


def read_inside(folder: Path, path: str) -> bytes:
    """Reads a file of a model's folder.

    Raises:
        ServableError: There is none, it is too large, or the path leads out of the folder.
    """
    file = folder / check_relative(path)
    try:
        if file.stat().st_size > _MAX_CONFIG_BYTES:
            raise ServableError("invalid_argument", f"file '{path}' is larger than {_MAX_CONFIG_BYTES} bytes")
        return file.read_bytes()
    except OSError as error:
        raise ServableError("invalid_argument", f"file '{path}' cannot be read: {error.strerror}") from error


def fingerprint(folder: Path, *, skip_versions: bool = False) -> Fingerprint:
    """Describes a folder's files so that a change shows; with `skip_versions` those outside of version folders."""
    found: list[tuple[str, int, int]] = []
    waiting = [folder]
    while waiting and len(found) < _MAX_FILES:
        for entry in sorted(waiting.pop().iterdir()):
            if entry.is_dir():
                # What the interpreter writes when a model is loaded is no change of the model.
                is_version = skip_versions and entry.parent == folder and _is_version(entry.name)
                if entry.name != "__pycache__" and not is_version:
                    waiting.append(entry)
            else:
                stat = entry.stat()
                found.append((str(entry.relative_to(folder)), stat.st_mtime_ns, stat.st_size))
    return tuple(sorted(found))


def of_files(files: Mapping[str, bytes]) -> Fingerprint:
    """Describes files that came with a request; their hash stands for the time."""
    return tuple(sorted((path, hash(content), len(content)) for path, content in files.items()))


def _is_version(name: str) -> bool:
    return name.isascii() and name.isdigit() and name != "0" and not name.startswith("0") and len(name) <= 18

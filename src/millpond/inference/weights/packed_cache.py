"""The directory of packed weights: what is in it, who may write, what is removed.

A file is named by what was packed and how (`PackedKey`): change the model, its dtype or the code that packs, and
another file is asked for. Readers hold a shared lock on theirs and are never robbed of it; one process writes a file
while others wait for it. Nothing here stops a start: what cannot be read or written is said once, and the caller packs
into memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from millpond.base.units import format_bytes
from millpond.config import env
from millpond.inference.ops.parameters import ParameterStore
from millpond.inference.weights.packed_file import PAGE, PackedFile, PackedFileError, PackedHeader
from millpond.inference.weights.packed_writer import NEW_SUFFIX, PackedWriter

SUFFIX = ".packed"
LEAST_FREE_BYTES = 1 << 30  # of the disk, after writing
LONGEST_WAIT_S = 300.0  # for another process that packs the same
_POLL_S = 0.1
_log = logging.getLogger(__name__)

Report = Callable[[str, float], None]  # what is being done, how much of it
Pack = Callable[[ParameterStore], None]


@dataclass(frozen=True, slots=True)
class PackedKey:
    """What a file holds.

    Attributes:
        source: Digest of the model's files: their content and what the file system says of them.
        form: Digest of all else that the bytes depend on: dtype, instruction set, the code that packs.
        model: Where the model is, for people.
        dtype: What its matrices are kept in, for people.
    """

    source: str
    form: str
    model: str
    dtype: str

    @property
    def text(self) -> str:
        """Names the file. Two forms of one model and dtype begin alike."""
        return f"{self._family}{self.form[:24]}"

    @property
    def _family(self) -> str:
        return f"{self.source[:24]}-{self.dtype}-"

    def is_superseded(self, other: str) -> bool:
        """Whether a file's key is that of the same weights in a form that this one takes the place of."""
        return other.startswith(self._family) and other != self.text


@dataclass(frozen=True, slots=True)
class PackedEntry:
    """One file of the directory; `used_s` is when it was last used, seconds since 1970."""

    key: str
    model: str
    dtype: str
    path: str
    size_bytes: int
    used_s: float


def packed_directory() -> Path:
    """Where packed weights are kept."""
    return env.cache_dir() / "packed"


class PackedCache:
    """The directory.

    Args:
        root: Where it is; made when it is needed.
        max_bytes: Most that its files may take together; 0 writes none.
        wait_s: Longest wait for another process that packs the same weights.
    """

    def __init__(self, root: Path, max_bytes: int, wait_s: float = LONGEST_WAIT_S) -> None:
        self._root = root
        self._max_bytes = max_bytes
        self._wait_s = wait_s

    def path(self, key: str) -> Path:
        """Where a file is, or would be."""
        return self._root / f"{key}{SUFFIX}"

    def has(self, key: PackedKey) -> bool:
        """Whether a start would find the file; its parameters are not read."""
        try:
            PackedFile(self.path(key.text), key.text).close()
        except (OSError, PackedFileError):
            return False
        return self._max_bytes > 0

    def open_or_pack(self, key: PackedKey, size_bytes: int, pack: Pack, report: Report) -> PackedFile | None:
        """The parameters of `key`, loaded; packs and writes them first if they are not there.

        Args:
            key: Which.
            size_bytes: About how large they are.
            pack: Asks a store for each parameter in order.
            report: Hears how far it is.

        Returns:
            None when there can be no file; the log says why.
        """
        if self._max_bytes <= 0:
            return None
        if size_bytes > self._max_bytes:
            limit = format_bytes(self._max_bytes)
            _log.info("The packed weights (%s) are not kept: %s are allowed.", format_bytes(size_bytes), limit)
            return None
        try:
            found = self._open(key, report)
            return found if found is not None else self._pack(key, size_bytes, pack, report)
        except OSError as error:
            reason = error.strerror or str(error)
            _log.warning("The packed weights cannot be kept in %s: %s. Each start packs them anew.", self._root, reason)
            return None

    def _open(self, key: PackedKey, report: Report) -> PackedFile | None:
        path = self.path(key.text)
        try:
            file = PackedFile(path, key.text)
        except FileNotFoundError:
            return None
        except PackedFileError as error:
            self._reject(path, str(error))
            return None
        try:
            with contextlib.suppress(OSError):  # no locks here, or its writer has not let go of it yet
                fcntl.flock(file.descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if not _is_stamped(file):
                file.verify(lambda fraction: report("check packed weights", fraction))
                _stamp(path, os.fstat(file.descriptor))
            with contextlib.suppress(OSError):
                os.utime(_stamp_path(path))
            file.load(lambda fraction: report("weights", fraction))
        except PackedFileError as error:
            file.close()
            self._reject(path, str(error))
            return None
        except BaseException:
            file.close()
            raise
        return file

    def _reject(self, path: Path, reason: str) -> None:
        _log.warning("%s is not used: %s. It is written again.", path, reason)
        path.unlink(missing_ok=True)

    def reject(self, file: PackedFile, reason: str) -> None:
        """Closes and removes a file that turned out not to be what the program asks for."""
        file.close()
        with contextlib.suppress(OSError):
            self._reject(file.path, reason)

    def _pack(self, key: PackedKey, size_bytes: int, pack: Pack, report: Report) -> PackedFile | None:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        with self._locked(key.text, report) as is_ours:
            if not is_ours:
                _log.warning("Another process has been packing these weights for %.0f s.", self._wait_s)
                return None
            found = self._open(key, report)  # the one we waited for has written it
            if found is not None:
                return found
            self._make_room(key, size_bytes)
            with PackedWriter(self.path(key.text)) as writer:
                pack(writer)
                report("write packed weights", 0.0)
                status = writer.commit(key.text, key.model, key.dtype)
            _stamp(self.path(key.text), status)
            return self._open(key, report)

    @contextlib.contextmanager
    def _locked(self, key: str, report: Report) -> Iterator[bool]:
        deadline = time.monotonic() + self._wait_s
        with (self._root / f"{key}.lock").open("w") as file:
            is_ours = _try_lock(file.fileno())
            while not is_ours and time.monotonic() < deadline:
                report("wait for another start that packs these weights", 0.0)
                time.sleep(_POLL_S)
                is_ours = _try_lock(file.fileno())
            try:
                yield is_ours
            finally:
                if is_ours:
                    Path(file.name).unlink(missing_ok=True)

    def _make_room(self, key: PackedKey, size_bytes: int) -> None:
        """Removes what was left over, what `key` takes the place of, and what was not used for longest."""
        self._remove_leftovers()
        kept = []
        for entry in self.entries():
            if not (key.is_superseded(entry.key) and self.remove(entry)):
                kept.append(entry)
        total = sum(entry.size_bytes for entry in kept) + size_bytes
        for entry in sorted(kept, key=lambda entry: entry.used_s):
            is_full = shutil.disk_usage(self._root).free < size_bytes + LEAST_FREE_BYTES
            if not (is_full or total > self._max_bytes):
                break
            if self.remove(entry):
                total -= entry.size_bytes
        if shutil.disk_usage(self._root).free < size_bytes + LEAST_FREE_BYTES:
            raise OSError(f"{format_bytes(size_bytes)} and {format_bytes(LEAST_FREE_BYTES)} to spare are not free")

    def entries(self) -> list[PackedEntry]:
        """Lists the files, the one used last first."""
        found = []
        for path in self._root.glob(f"*{SUFFIX}"):
            try:
                with path.open("rb") as file:
                    size, used = os.fstat(file.fileno()).st_size, os.fstat(file.fileno()).st_mtime
                    header = PackedHeader.parse(file.read(PAGE))
                model, dtype = header.model, header.dtype
            except PackedFileError:
                model = dtype = "damaged"
            except OSError:
                continue
            with contextlib.suppress(OSError):
                used = _stamp_path(path).stat().st_mtime
            found.append(PackedEntry(path.name.removesuffix(SUFFIX), model, dtype, str(path), size, used))
        return sorted(found, key=lambda entry: -entry.used_s)

    def remove(self, entry: PackedEntry) -> bool:
        """Removes a file unless an engine runs on it; says whether it did."""
        path = self.path(entry.key)
        if not _remove_unlocked(path):
            return False
        _stamp_path(path).unlink(missing_ok=True)
        return True

    def prune(self, keep_bytes: int) -> list[PackedEntry]:
        """Removes all but `keep_bytes` of what was used last, and leftovers; returns what was removed."""
        self._remove_leftovers()
        removed, left = [], 0
        for entry in self.entries():
            left += entry.size_bytes
            if left > keep_bytes and self.remove(entry):
                left -= entry.size_bytes
                removed.append(entry)
        return removed

    def _remove_leftovers(self) -> None:
        for leftover in self._root.glob(f"*{NEW_SUFFIX}"):
            _remove_unlocked(leftover)

    def check(self, entry: PackedEntry, report: Report) -> str:
        """Reads a whole file; returns what is wrong with it, or nothing."""
        try:
            file = PackedFile(self.path(entry.key), entry.key)
        except (OSError, PackedFileError) as error:
            return str(error)
        try:
            file.verify(lambda fraction: report(f"check {entry.key}", fraction))
        except (OSError, PackedFileError) as error:
            return str(error)
        finally:
            file.close()
        return ""


def source_digest(content_digest: str, files: list[str]) -> str:
    """Names a model's files: the digest of their content, which reads samples, and their inodes, sizes and times."""
    hasher = hashlib.sha256(content_digest.encode())
    for file in files:
        facts = os.stat(file)
        hasher.update(f" {facts.st_ino} {facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns}".encode())
    return hasher.hexdigest()


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _remove_unlocked(path: Path) -> bool:
    """Removes a file that nobody has locked."""
    try:
        with path.open("rb") as file:
            if not _try_lock(file.fileno()):
                return False
            path.unlink(missing_ok=True)
    except OSError:
        return False
    return True


# A file whose parameters were read and found right has a stamp beside it: the file system's facts at that time. They
# change with every write, so a start need not read gigabytes to know that nothing happened since.


def _stamp_path(path: Path) -> Path:
    return path.with_suffix(".verified.json")


def _facts(status: os.stat_result) -> dict[str, int]:
    return {
        "inode": status.st_ino,
        "size_bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "ctime_ns": status.st_ctime_ns,
    }


def _is_stamped(file: PackedFile) -> bool:
    try:
        return bool(json.loads(_stamp_path(file.path).read_text()) == _facts(os.fstat(file.descriptor)))
    except (OSError, ValueError):
        return False


def _stamp(path: Path, status: os.stat_result) -> None:
    new = _stamp_path(path).with_suffix(f".{os.getpid()}{NEW_SUFFIX}")
    with contextlib.suppress(OSError):  # without a stamp the next start reads the file once more
        new.write_text(json.dumps(_facts(status)))
        os.replace(new, _stamp_path(path))

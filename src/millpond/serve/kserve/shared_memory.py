"""Shared memory that clients register, to pass tensors without sending them.

Regions are read and written through their file, never mapped: a client that cuts its region short while it is in use
gets an error, where a mapping would end the process.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path

from millpond.serve.kserve.raw import Buffer
from millpond.serve.servables.errors import ServableError

_PLACE = Path("/dev/shm")
_OURS = ("millpond", "triton_python_backend", "psm_", "sem.")  # arenas of worker processes, also other servers'
_MAX_REGIONS = 4096


@dataclass(frozen=True, slots=True)
class _Region:
    key: str
    offset: int
    byte_size: int
    file: int


class SharedRegions:
    """The registered regions of one server.

    Args:
        is_allowed: Whether clients may register any.
    """

    def __init__(self, *, is_allowed: bool = True) -> None:
        self._is_allowed = is_allowed
        self._regions: dict[str, _Region] = {}

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Opens a region.

        Raises:
            ServableError: There is none, it is shorter than said, or the name is taken.
        """
        if not self._is_allowed:
            raise ServableError("unsupported", "shared memory regions of clients are not allowed on this server")
        if name in self._regions:
            raise ServableError("already_exists", f"shared memory region '{name}' already in manager")
        if len(self._regions) >= _MAX_REGIONS:
            raise ServableError("unavailable", f"there are {_MAX_REGIONS} shared memory regions already")
        plain = key.removeprefix("/")
        if not plain or "/" in plain or "\0" in plain or plain in (".", "..") or plain.startswith(_OURS):
            raise _cannot_open(key)
        try:
            file = os.open(_PLACE / plain, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
        except (OSError, ValueError):  # ValueError: characters that no file's name has
            raise _cannot_open(key) from None
        if byte_size == 0:
            os.close(file)
            raise ServableError("internal", f"Invalid shared memory region: '{key}'", is_client_fault=True)
        if offset < 0 or byte_size < 0 or offset + byte_size > os.fstat(file).st_size:
            os.close(file)
            raise ServableError("invalid_argument", f"failed to register shared memory region '{name}': invalid args")
        self._regions[name] = _Region(key, offset, byte_size, file)

    def unregister(self, name: str | None) -> None:
        """Closes a region, or all; one that is not there is no error."""
        for found in [name] if name is not None else list(self._regions):
            region = self._regions.pop(found, None)
            if region is not None:
                os.close(region.file)

    def status(self, name: str | None) -> list[dict[str, object]]:
        """Describes a region, or all.

        Raises:
            ServableError: There is none of this name.
        """
        if name is not None and name not in self._regions:
            raise ServableError("not_found", f"Unable to find system shared memory region: '{name}'")
        return [
            {"name": found, "key": region.key, "offset": region.offset, "byte_size": region.byte_size}
            for found, region in sorted(self._regions.items())
            if name is None or name == found
        ]

    def read(self, name: str, offset: int, byte_size: int) -> bytes:
        """Returns a copy of a part of a region.

        Raises:
            ServableError: There is no such part.
        """
        region = self._find(name, offset, byte_size)
        data = os.pread(region.file, byte_size, region.offset + offset)
        if len(data) != byte_size:
            raise _outside(name)
        return data

    def check(self, name: str, offset: int, byte_size: int) -> None:
        """Raises when there is no such part of a region.

        Raises:
            ServableError: There is none.
        """
        self._find(name, offset, byte_size)

    def write(self, name: str, offset: int, byte_size: int, data: Buffer, output: str = "") -> None:
        """Puts data at the beginning of a part of a region; `output` is whose data it is.

        Raises:
            ServableError: There is no such part, or the data is longer.
        """
        region = self._find(name, offset, byte_size)
        if len(data) > byte_size:
            raise ServableError(
                "internal",
                f"shared memory size specified with the request for output '{output}' ({byte_size} bytes) should be at "
                f"least {len(data)} bytes to hold the results",
                is_client_fault=True,
            )
        if os.fstat(region.file).st_size < region.offset + offset + len(data):
            raise _outside(name)
        os.pwrite(region.file, data, region.offset + offset)

    def close(self) -> None:
        """Closes all regions."""
        with contextlib.suppress(OSError):
            self.unregister(None)

    def _find(self, name: str, offset: int, byte_size: int) -> _Region:
        region = self._regions.get(name)
        if region is None:
            raise ServableError("not_found", f"Unable to find shared memory region: '{name}'")
        if offset < 0 or byte_size < 0 or offset + byte_size > region.byte_size:
            raise _outside(name)
        return region


def _cannot_open(key: str) -> ServableError:
    return ServableError("internal", f"Unable to open shared memory region: '{key}'", is_client_fault=True)


def _outside(name: str) -> ServableError:
    return ServableError("invalid_argument", f"Invalid offset + byte size for shared memory region: '{name}'")

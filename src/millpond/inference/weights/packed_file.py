"""The file that holds a model's packed parameters: its form on disk, and the mapping a start runs on.

    page 0     magic, length of the header, the header (JSON), SHA-256 of both
    from 4096  the parameters, in the order they are asked for; behind them the table of their labels and places (JSON)

The header names the key and the digests of table and parameters. Opening checks everything but the parameters
themselves, which are gigabytes; packed_cache.py decides when `verify` reads those. Written by packed_writer.py.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from millpond.inference.ops import native
from millpond.inference.ops.parameters import Fill

MAGIC = b"MILLPACK"
PAGE = 4096
ALIGN_SMALL = 64
READ_BYTES = 32 << 20
MAX_TABLE_BYTES = 64 << 20
_DIGEST_BYTES = 32
_POPULATE_READ = 22  # MADV_POPULATE_READ, Linux 5.14
_ENOUGH_HUGE = 0.5  # of a mapping on huge pages; below, a copy on huge pages is read faster, step after step


class PackedFileError(Exception):
    """The file is not what it should be; it has to be written again."""


@dataclass(frozen=True, slots=True)
class PackedHeader:
    """What a file says of itself. Sizes are bytes.

    Attributes:
        key: Names what was packed and how; also the file's name.
        model: Where the model was, for people.
        dtype: What its matrices are kept in, for people.
        data_bytes: Parameters, from the second page on; the table follows.
        data_sha256: Their digest.
        table_bytes: The table's size.
        table_sha256: Its digest.
    """

    key: str
    model: str
    dtype: str
    data_bytes: int
    data_sha256: str
    table_bytes: int
    table_sha256: str

    def page(self) -> bytes:
        """The file's first page."""
        text = json.dumps(asdict(self)).encode()
        head = MAGIC + len(text).to_bytes(4, "little") + text
        if len(head) + _DIGEST_BYTES > PAGE:
            raise PackedFileError("the header does not fit a page")
        return (head + hashlib.sha256(head).digest()).ljust(PAGE, b"\0")

    @classmethod
    def parse(cls, page: bytes) -> PackedHeader:
        """Reads the first page.

        Raises:
            PackedFileError: It is none.
        """
        start = len(MAGIC) + 4
        end = start + int.from_bytes(page[len(MAGIC) : start], "little")
        if page[: len(MAGIC)] != MAGIC or end + _DIGEST_BYTES > len(page):
            raise PackedFileError("it does not begin like a file of packed weights")
        if hashlib.sha256(page[:end]).digest() != page[end : end + _DIGEST_BYTES]:
            raise PackedFileError("its header is damaged")
        try:
            return cls(**json.loads(page[start:end]))
        except (TypeError, ValueError) as error:
            raise PackedFileError(f"its header is of another form: {error}") from error


@dataclass(frozen=True, slots=True)
class Piece:
    """One parameter's place; `offset` counts from the start of the file."""

    label: str
    offset: int
    size_bytes: int


def place_after(position: int, size_bytes: int) -> int:
    """Where the next piece begins: large ones on a page, small ones on a line of the cache."""
    align = PAGE if size_bytes >= PAGE else ALIGN_SMALL
    return (position + align - 1) // align * align


class PackedFile:
    """An opened file; a `ParameterStore` that has everything already.

    Close it when no program uses its addresses any more. While it is open, the file is locked against removal.

    Args:
        path: The file.
        key: What it must hold.

    Raises:
        FileNotFoundError: It is not there.
        PackedFileError: It is damaged, or holds something else.
        OSError: It cannot be read.
    """

    def __init__(self, path: Path, key: str) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        self._mapping: mmap.mmap | None = None
        self._copy: native.NativeMemory | None = None
        self._address = 0
        self._next = 0
        try:
            self.header = PackedHeader.parse(os.pread(self._descriptor, PAGE, 0))
            if self.header.key != key:
                raise PackedFileError("it holds other weights than its name says")
            self.size_bytes = os.fstat(self._descriptor).st_size
            self._pieces = self._read_table()
        except BaseException:
            os.close(self._descriptor)
            raise

    @property
    def descriptor(self) -> int:
        """Of the open file, for locks and its facts."""
        return self._descriptor

    def _read_table(self) -> list[Piece]:
        header = self.header
        table_at = PAGE + header.data_bytes
        if not 0 < header.table_bytes <= MAX_TABLE_BYTES or self.size_bytes != table_at + header.table_bytes:
            raise PackedFileError(f"it has {self.size_bytes} bytes, not those of its header")
        text = os.pread(self._descriptor, header.table_bytes, table_at)
        if hashlib.sha256(text).hexdigest() != header.table_sha256:
            raise PackedFileError("its table is damaged")
        pieces = [Piece(*row) for row in json.loads(text)]
        position = PAGE
        for piece in pieces:
            if piece.offset != place_after(position, piece.size_bytes):
                raise PackedFileError(f"its table puts {piece.label!r} at byte {piece.offset}")
            position = piece.offset + piece.size_bytes
        if position > table_at:
            raise PackedFileError("its table reaches behind its parameters")
        return pieces

    def verify(self, report: Callable[[float], None] = lambda fraction: None) -> None:
        """Reads all parameters and compares their digest.

        Raises:
            PackedFileError: They are not what was written.
        """
        hasher, position, end = hashlib.sha256(), PAGE, PAGE + self.header.data_bytes
        while position < end:
            chunk = os.pread(self._descriptor, min(READ_BYTES, end - position), position)
            if not chunk:
                raise PackedFileError("it ends early")
            hasher.update(chunk)
            position += len(chunk)
            report(position / end)
        if hasher.hexdigest() != self.header.data_sha256:
            raise PackedFileError("its parameters are not those that were written")

    def load(self, report: Callable[[float], None] = lambda fraction: None) -> None:
        """Brings the parameters into memory: mapped, or copied where the file system maps small pages only.

        Raises:
            OSError: The disk cannot read them.
            MemoryError: A copy does not fit.
        """
        size = self.size_bytes
        self._mapping = mmap.mmap(self._descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
        self._address = address_of(self._mapping)
        for start in range(0, size, READ_BYTES):
            try:
                self._mapping.madvise(_POPULATE_READ, start, min(READ_BYTES, size - start))
            except OSError:
                break  # an older kernel: pages come when they are touched
            report(min(1.0, (start + READ_BYTES) / size))
        library = native.load_library()
        if library is not None and huge_bytes(self._address) < _ENOUGH_HUGE * size:
            self._mapping.close()
            self._mapping = None
            self._read_copy(native.NativeMemory(library, size), report)

    def _read_copy(self, memory: native.NativeMemory, report: Callable[[float], None]) -> None:
        target = memoryview((ctypes.c_byte * self.size_bytes).from_address(memory.address)).cast("B")
        position = 0
        while position < self.size_bytes:
            count = os.preadv(self._descriptor, [target[position : position + READ_BYTES]], position)
            if count == 0:
                memory.close()
                raise OSError(f"{self.path} ended while it was read")
            position += count
            report(position / self.size_bytes)
        self._copy, self._address = memory, memory.address

    @property
    def is_mapped(self) -> bool:
        """Whether the parameters are the file's own pages, shared with every process that maps it."""
        return self._mapping is not None

    def place(self, label: str, size_bytes: int, fill: Fill) -> int:
        """The address of the next parameter; see `ParameterStore.place`.

        Raises:
            PackedFileError: Another one comes next.
        """
        del fill
        if self._next >= len(self._pieces):
            raise PackedFileError(f"it has no {label!r}")
        piece = self._pieces[self._next]
        if (piece.label, piece.size_bytes) != (label, size_bytes):
            raise PackedFileError(f"it has {piece.label!r} where {label!r} is asked for")
        self._next += 1
        return self._address + piece.offset

    def close(self) -> None:
        """Gives the memory back; every address is invalid afterwards."""
        if self._descriptor < 0:
            return
        if self._copy is not None:
            self._copy.close()
        if self._mapping is not None:
            self._mapping.close()
        self._mapping = self._copy = None
        os.close(self._descriptor)
        self._descriptor = -1


def table_text(pieces: Iterable[Piece]) -> bytes:
    """The table as it stands in a file."""
    rows: list[list[Any]] = [[piece.label, piece.offset, piece.size_bytes] for piece in pieces]
    return json.dumps(rows).encode()


def address_of(mapping: mmap.mmap) -> int:
    """Where a mapping begins."""
    return int(np.frombuffer(mapping, dtype=np.uint8).ctypes.data)


def huge_bytes(address: int, maps: Path = Path("/proc/self/smaps")) -> int:
    """Bytes of the mapping at `address` that are on huge pages."""
    is_ours = False
    with maps.open(encoding="ascii", errors="replace") as lines:
        for line in lines:
            if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
                is_ours = int(bounds[1], 16) <= address < int(bounds[2], 16)
            elif is_ours and line.startswith("FilePmdMapped:"):
                return int(line.split()[1]) * 1024
    return 0

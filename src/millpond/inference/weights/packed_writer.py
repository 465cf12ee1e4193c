"""Writes a file of packed parameters while they are packed, one at a time, so that no two copies are in memory.

A `ParameterStore` whose addresses are good for filling only: two buffers take turns, and while one is filled the other
is hashed and written. The file has a name of its own until it is whole and on the disk; then it takes its place. Called
by packed_cache.py.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import os
import tempfile
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from millpond.inference.ops import native
from millpond.inference.ops.parameters import Fill
from millpond.inference.weights.packed_file import PAGE, PackedHeader, Piece, place_after, table_text

NEW_SUFFIX = ".new"
_CHUNK_BYTES = 16 << 20  # written at once: the page cache then keeps it on huge pages, and so does the mapping


class PackedWriter:
    """Writes one file; a context manager that leaves nothing behind unless `commit` was called.

    Args:
        target: What the file is called once it is whole.

    Raises:
        OSError: It cannot be made.
    """

    def __init__(self, target: Path) -> None:
        library = native.load_library()
        assert library is not None, "only native programs are packed"
        self._library = library
        self._target = target
        self._descriptor, name = tempfile.mkstemp(NEW_SUFFIX, f"{target.name}.", target.parent)
        self._path = Path(name)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # says that its writer is alive
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="write-packed")
        self._buffers: list[native.NativeMemory | None] = [None, None]
        self._turn = 0
        self._pending: Future[None] | None = None
        self._pieces: list[Piece] = []
        self._position = PAGE
        self._hasher = hashlib.sha256()
        self._chunk = bytearray(PAGE)  # of the file, not written yet; ends where the next piece's padding begins
        self._written = 0

    def __enter__(self) -> PackedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        for buffer in self._buffers:
            if buffer is not None:
                buffer.close()
        if self._descriptor >= 0:
            self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = -1

    def place(self, label: str, size_bytes: int, fill: Fill) -> int:
        """Packs a parameter and has it written; see `ParameterStore.place`.

        Raises:
            OSError: The disk is full or broken.
        """
        memory = self._buffer(size_bytes)
        ctypes.memset(memory.address, 0, size_bytes)
        fill(memory.address)
        offset = place_after(self._position, size_bytes)
        self._pieces.append(Piece(label, offset, size_bytes))
        self._wait()
        padding = offset - self._position
        self._pending = self._pool.submit(self._append, padding, memory.address, size_bytes)
        self._position = offset + size_bytes
        return int(memory.address)

    def commit(self, key: str, model: str, dtype: str) -> os.stat_result:
        """Ends the file, brings it to the disk, gives it its name and returns what the file system says of it.

        Raises:
            OSError: The disk is full or broken.
        """
        self._wait()
        table = table_text(self._pieces)
        header = PackedHeader(
            key=key,
            model=model,
            dtype=dtype,
            data_bytes=self._position - PAGE,
            data_sha256=self._hasher.hexdigest(),
            table_bytes=len(table),
            table_sha256=hashlib.sha256(table).hexdigest(),
        )
        self._chunk += table
        self._flush(len(self._chunk))
        os.fsync(self._descriptor)  # before the header: a file that has one is whole
        _write_all(self._descriptor, memoryview(header.page()), 0)
        os.fsync(self._descriptor)
        os.rename(self._path, self._target)
        status = os.fstat(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1
        sync_directory(self._target.parent)
        return status

    def _buffer(self, size_bytes: int) -> native.NativeMemory:
        self._turn = 1 - self._turn  # the other one may still be written
        memory = self._buffers[self._turn]
        if memory is None or memory.size_bytes < size_bytes:
            if memory is not None:
                memory.close()
            memory = native.NativeMemory(self._library, size_bytes)
            self._buffers[self._turn] = memory
        return memory

    def _wait(self) -> None:
        if self._pending is not None:
            self._pending.result()
            self._pending = None

    def _append(self, padding: int, address: int, size_bytes: int) -> None:
        data = memoryview((ctypes.c_byte * size_bytes).from_address(address)).cast("B")
        zeros = bytes(padding)
        self._hasher.update(zeros)
        self._hasher.update(data)
        self._chunk += zeros
        position = 0
        while position < size_bytes:
            count = min(_CHUNK_BYTES - len(self._chunk), size_bytes - position)
            self._chunk += data[position : position + count]
            position += count
            if len(self._chunk) >= _CHUNK_BYTES:
                self._flush(_CHUNK_BYTES)

    def _flush(self, size_bytes: int) -> None:
        with memoryview(self._chunk) as chunk:
            _write_all(self._descriptor, chunk[:size_bytes], self._written)
        self._written += size_bytes
        del self._chunk[:size_bytes]


def sync_directory(directory: Path) -> None:
    """Makes a rename outlive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_all(descriptor: int, data: memoryview, position: int) -> None:
    while data:
        count = os.pwrite(descriptor, data, position)
        position += count
        data = data[count:]

"""A file in memory, read lazily by the kernel.

Owns the mapping and its lifetime. Knows no format and no torch (mapped_tensor.py makes tensors of it). The mapping is
private and not reserved: torch wants writable memory, a write would stay in this process, and a file larger than the
memory can still be mapped.
"""

from __future__ import annotations

import mmap
import os
import weakref

from millpond.base.errors import CheckpointError

_MAP_NORESERVE = 0x4000  # Linux; the mmap module names it from Python 3.13 on


class MappedFile:
    """One file, mapped. Bytes are read from the disk when they are first touched.

    Raises:
        CheckpointError: The file does not exist, is empty or cannot be read.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise CheckpointError(f"{path}: {_reason(error)}", fix="Check the path.") from error
        try:
            self.size_bytes = os.fstat(descriptor).st_size
            if self.size_bytes == 0:
                raise CheckpointError(f"{path}: the file is empty.", fix="Fetch it again.")
            self.buffer = mmap.mmap(
                descriptor,
                self.size_bytes,
                flags=mmap.MAP_PRIVATE | _MAP_NORESERVE,
                prot=mmap.PROT_READ | mmap.PROT_WRITE,
            )
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be mapped into memory: {_reason(error)}") from error
        finally:
            if not hasattr(self, "buffer"):
                os.close(descriptor)
        self._descriptor = descriptor
        self._close_descriptor = weakref.finalize(self, os.close, descriptor)

    def bytes_at(self, offset: int, size: int) -> bytes:
        """Copies a range out. Not through the mapping: a few bytes of it bring megabytes into this process."""
        return os.pread(self._descriptor, size, offset)

    def release(self) -> None:
        """Gives the pages that were read back; touching them again brings them back."""
        self.buffer.madvise(mmap.MADV_DONTNEED)

    def close(self) -> None:
        """Unmaps the file now, or when the last tensor that shares it is gone."""
        self._close_descriptor()
        try:
            self.buffer.close()
        except BufferError:
            del self.buffer


def _reason(error: OSError) -> str:
    return error.strerror or str(error)

"""A pytest plugin for runs by hand and under a sanitizer: another native library, and memory with walls around it.

    python -m pytest tests/ops -p tests.support.guarded_memory [--native-library FILE]

Every weight and buffer gets pages of its own, ending where an untouchable page starts: one byte past the end is a
segmentation fault with the kernel's name on the stack, whichever instruction reads it.
"""

from __future__ import annotations

import ctypes
import faulthandler
import functools
import mmap
from pathlib import Path

import pytest

from millpond.inference.ops import native
from millpond.inference.ops.native_abi import declare

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.mmap.restype = ctypes.c_void_p
_LIBC.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_LIBC.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_PAGE = mmap.PAGESIZE
_LINE = 64  # what the kernels align to


class GuardedMemory:
    """In place of `NativeMemory`: zeroed bytes whose end is the end of the mapping."""

    def __init__(self, library: ctypes.CDLL, size_bytes: int) -> None:
        del library
        self.size_bytes = max(-(-size_bytes // _LINE) * _LINE, _LINE)
        inner = -(-self.size_bytes // _PAGE) * _PAGE
        self._mapped = inner + 2 * _PAGE
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        start = _LIBC.mmap(None, self._mapped, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0)
        if start in (None, ctypes.c_void_p(-1).value):
            raise MemoryError(f"could not map {self._mapped} bytes")
        self._start: int = start
        for wall in (start, start + _PAGE + inner):
            if _LIBC.mprotect(wall, _PAGE, 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        self.address = start + _PAGE + inner - self.size_bytes

    def close(self) -> None:
        """Gives the memory back."""
        if self.address:
            _LIBC.munmap(self._start, self._mapped)
            self.address = 0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--native-library", type=Path, help="a native library to test instead of the installed one")


def pytest_configure(config: pytest.Config) -> None:
    faulthandler.enable()
    native.NativeMemory = GuardedMemory  # type: ignore[misc, assignment]
    native.Arena.CHUNK_BYTES = 0  # a mapping a piece
    native.Arena._ALIGN = _LINE
    path: Path | None = config.getoption("--native-library")
    if path is not None:
        native.load_library = functools.cache(lambda: declare(ctypes.CDLL(str(path.resolve()))))  # type: ignore[assignment]

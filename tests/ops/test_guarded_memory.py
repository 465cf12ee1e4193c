"""The walls of tests/support/guarded_memory.py are there."""

from __future__ import annotations

import os
import subprocess
import sys

READ_PAST_THE_END = """
import ctypes
from tests.support.guarded_memory import GuardedMemory
memory = GuardedMemory(ctypes.CDLL(None), 100)
ctypes.string_at(memory.address, memory.size_bytes)
print("inside", flush=True)
ctypes.string_at(memory.address + memory.size_bytes, 1)
print("outside", flush=True)
"""


def test_a_byte_past_the_end_cannot_be_read() -> None:
    plain = {**os.environ, "LD_PRELOAD": ""}  # a sanitizer would catch the signal and exit by itself
    command = [sys.executable, "-c", READ_PAST_THE_END]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=plain)
    assert done.stdout == "inside\n"
    assert done.returncode == -11

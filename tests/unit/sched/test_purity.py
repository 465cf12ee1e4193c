"""The scheduler and the KV bookkeeping can be used where there is no torch."""

from __future__ import annotations

import subprocess
import sys


def test_importing_the_scheduler_loads_no_torch_and_no_numpy() -> None:
    code = "import sys, millpond.inference.sched; sys.exit(any(name in sys.modules for name in ('torch', 'numpy')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

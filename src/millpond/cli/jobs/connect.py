"""Opens the jobs of the data directory for a command, with what its shell has to pass on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from millpond.config import env

if TYPE_CHECKING:
    from millpond.jobs.client import JobsClient


def jobs_root() -> Path:
    """The jobs directory."""
    return env.data_dir() / "jobs"


@contextmanager
def open_jobs() -> Iterator[JobsClient]:
    """The client; jobs it submits run where the command was typed."""
    from millpond.jobs.client import JobsClient

    client = JobsClient(jobs_root(), env.job_environment(), str(Path.cwd()))
    try:
        client.revive()
        yield client
    finally:
        client.close()

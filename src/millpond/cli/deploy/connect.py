"""Opens the deployments of the data directory for a command."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from millpond.cli.jobs.connect import jobs_root
from millpond.config import env

if TYPE_CHECKING:
    from millpond.jobs.deployments.client import DeploymentsClient


@contextmanager
def open_deployments() -> Iterator[DeploymentsClient]:
    """The client; replicas run where the command was typed."""
    from millpond.jobs.deployments.client import DeploymentsClient

    client = DeploymentsClient(jobs_root(), env.job_environment(), str(Path.cwd()))
    try:
        client.revive()
        yield client
    finally:
        client.close()

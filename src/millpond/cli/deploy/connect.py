"""Opens the deployments a command is about: those of the data directory, or those of a Kubernetes cluster."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from millpond.cli.jobs.connect import chosen_cluster, connection, jobs_root
from millpond.config import env

if TYPE_CHECKING:
    from millpond.jobs.deployments.verbs import DeploymentVerbs


@contextmanager
def open_deployments() -> Iterator[DeploymentVerbs]:
    """The deployments of the chosen cluster."""
    if chosen_cluster().is_local:
        with _open_local() as local:
            yield local
        return
    connect = connection(chosen_cluster())
    from millpond.jobs.deployments.kubernetes.client import KubernetesDeployments

    remote = KubernetesDeployments(connect)
    try:
        yield remote
    finally:
        remote.close()


@contextmanager
def _open_local() -> Iterator[DeploymentVerbs]:
    """Replicas run where the command was typed."""
    from millpond.jobs.deployments.client import DeploymentsClient

    client = DeploymentsClient(jobs_root(), env.job_environment(), str(Path.cwd()))
    try:
        client.revive()
        yield client
    finally:
        client.close()

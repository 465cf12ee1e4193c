"""A server: one replica of a deployment, or the gateway that keeps it. It finds its port in PORT."""

from __future__ import annotations

from millpond.api.job import CleanPolicy, RestartPolicy
from millpond.jobs.frameworks.base import Framework, Replica, RoleRule


def environment(replica: Replica) -> dict[str, str]:
    """Where to listen."""
    return {"PORT": str(replica.address(replica.role.name, replica.index).port)}


FRAMEWORK = Framework(
    name="serving",
    kind="Server",
    short="serving",
    replica_specs="replicaSpecs",
    container="main",
    port=8000,
    roles=(RoleRule("Server", RestartPolicy.NEVER), RoleRule("Gateway", RestartPolicy.ON_FAILURE)),
    environment=environment,
    clean_policy=CleanPolicy.RUNNING,
    has_kind=False,
)

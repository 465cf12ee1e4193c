"""Notebook: one server to work in, KubeDL's kind of that name; it runs until it ends or is deleted."""

from __future__ import annotations

from millpond.api.job import CleanPolicy, RestartPolicy
from millpond.jobs.frameworks.base import Framework, Replica, RoleRule


def environment(replica: Replica) -> dict[str, str]:
    """What Jupyter's images read, and where to listen."""
    return {"JUPYTER_ENABLE_LAB": "yes", "PORT": str(replica.address("Notebook").port)}


FRAMEWORK = Framework(
    name="notebook",
    kind="Notebook",
    short="nb",
    replica_specs="",
    container="notebook",
    port=8888,
    roles=(RoleRule("Notebook", RestartPolicy.ON_FAILURE, is_chief=True),),
    environment=environment,
    clean_policy=CleanPolicy.RUNNING,
    api_version="notebook.kubedl.io/v1alpha1",
)

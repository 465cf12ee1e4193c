"""ElasticDLJob: one master, which starts and replaces its own workers."""

from __future__ import annotations

from millpond.api.job import CleanPolicy, RestartPolicy
from millpond.jobs.frameworks.base import Framework, Replica, RoleRule, done_with


def environment(replica: Replica) -> dict[str, str]:
    """The name the master goes by, and where its workers reach it."""
    address = replica.address("Master")
    return {"ELASTICDL_JOB_NAME": replica.job.name, "MASTER_ADDR": str(address), "PYTHONUNBUFFERED": "1"}


FRAMEWORK = Framework(
    name="elasticdl",
    kind="ElasticDLJob",
    short="edl",
    replica_specs="elasticdlReplicaSpecs",
    container="elasticdl",
    port=50001,
    roles=(RoleRule("Master", RestartPolicy.NEVER, is_chief=True),),
    environment=environment,
    succeeded=done_with("Master"),
    clean_policy=CleanPolicy.RUNNING,
)

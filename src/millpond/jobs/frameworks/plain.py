"""A plain job: equal workers that need not know each other; it succeeds when all of them do."""

from __future__ import annotations

import json

from millpond.api.job import CleanPolicy, RestartPolicy
from millpond.jobs.frameworks.base import Framework, Replica, RoleRule, all_done


def environment(replica: Replica) -> dict[str, str]:
    """Which worker this is, of how many, and where all of them are."""
    peers = replica.cluster([role.name for role in replica.job.roles])
    return {
        "MILLPOND_JOB_INDEX": str(replica.index),
        "MILLPOND_JOB_REPLICAS": str(replica.role.replicas),
        "MILLPOND_JOB_PEERS": json.dumps(peers),
    }


FRAMEWORK = Framework(
    name="plain",
    kind="Job",
    short="job",
    replica_specs="replicaSpecs",
    container="main",
    port=29500,
    roles=(RoleRule("Worker", RestartPolicy.NEVER),),
    environment=environment,
    succeeded=all_done,
    clean_policy=CleanPolicy.RUNNING,
    has_kind=False,
)

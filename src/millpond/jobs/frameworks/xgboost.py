"""XGBoostJob: a master that carries the tracker, and workers ranked after it."""

from __future__ import annotations

from millpond.api.job import CleanPolicy, RestartPolicy
from millpond.jobs.frameworks.base import Framework, Replica, RoleRule, done_with

_MEMBERS = ("Master", "Worker")


def environment(replica: Replica) -> dict[str, str]:
    """The tracker's address, and this process's place. The master is rank 0, so workers begin at 1."""
    master = replica.address("Master") if replica.job.role("Master") else replica.address("Worker")
    return {
        "MASTER_ADDR": master.host,
        "MASTER_PORT": str(master.port),
        "WORLD_SIZE": str(replica.num_members(_MEMBERS)),
        "RANK": str(replica.rank_after(_MEMBERS)),
        "PYTHONUNBUFFERED": "1",
    }


FRAMEWORK = Framework(
    name="xgboost",
    kind="XGBoostJob",
    short="xgb",
    replica_specs="xgbReplicaSpecs",
    container="xgboostjob",
    port=9999,
    roles=(
        RoleRule("Master", RestartPolicy.NEVER, is_chief=True),
        RoleRule("Worker", RestartPolicy.ON_FAILURE, after=("Master",)),
    ),
    environment=environment,
    succeeded=done_with("Master", "Worker"),
    clean_policy=CleanPolicy.NONE,
    ttl_s=100.0,
)

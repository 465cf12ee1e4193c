"""XDLJob: parameter servers, a scheduler and many workers, of which enough must finish."""

from __future__ import annotations

import json

from millpond.api.job import CleanPolicy, JobSpec, RestartPolicy
from millpond.jobs.frameworks.base import Framework, Option, PhaseOf, Replica, RoleRule, num_done

_COUNTED = ("Worker", "ExtendRole")


def environment(replica: Replica) -> dict[str, str]:
    """XDL_CONFIG and the task; a ZooKeeper path becomes this job's own."""
    task = {"name": replica.role.name.lower(), "index": replica.index}
    cluster = replica.cluster(("PS", "Scheduler", "Worker", "ExtendRole"))
    values = {
        "XDL_CONFIG": json.dumps({"cluster": cluster, "task": task}),
        "TASK_NAME": replica.role.name.lower(),
        "TASK_INDEX": str(replica.index),
    }
    if "ZK_ADDR" in replica.role.env:
        values["ZK_ADDR"] = f"{replica.role.env['ZK_ADDR'].rstrip('/')}/{replica.uid}"
    return values


def succeeded(job: JobSpec, phase_of: PhaseOf) -> bool:
    """Enough workers succeeded: the rate in percent, rounded up, else the number, else all."""
    total = sum(role.replicas for role in job.roles if role.name in _COUNTED)
    done = sum(num_done(job, phase_of, role) for role in _COUNTED)
    number, rate = job.options.get("minFinishWorkNum"), job.options.get("minFinishWorkRate")
    if isinstance(rate, int):
        return total > 0 and done >= -(-total * rate // 100)
    return total > 0 and done >= (number if isinstance(number, int) else total)


FRAMEWORK = Framework(
    name="xdl",
    kind="XDLJob",
    short="xdl",
    replica_specs="xdlReplicaSpecs",
    container="xdl",
    port=2222,
    roles=tuple(RoleRule(name, RestartPolicy.NEVER) for name in ("PS", "Scheduler", "Worker", "ExtendRole")),
    environment=environment,
    succeeded=succeeded,
    tolerates_failures=True,
    clean_policy=CleanPolicy.RUNNING,
    backoff_limit=20,
    options={"minFinishWorkNum": Option(1), "minFinishWorkRate": Option(1, 100, default=90)},
)

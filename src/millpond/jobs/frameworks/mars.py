"""MarsJob: a scheduler, workers that hold chunks of arrays in memory, and a web page."""

from __future__ import annotations

import json

from millpond.api.job import CleanPolicy, RestartPolicy
from millpond.jobs.frameworks.base import Framework, Option, Replica, RoleRule, done_with

_GROUP = "workerMemoryTuningPolicy"
_TUNING = {"plasmaStore": "MARS_PLASMA_DIRS", "lockFreeFileIO": "MARS_LOCK_FREE_FILEIO",
           "spillDirs": "MARS_SPILL_DIRS", "workerCacheSize": "MARS_CACHE_MEM_SIZE"}  # fmt: skip


def environment(replica: Replica) -> dict[str, str]:
    """The cluster without its workers (they report to the scheduler), and what this process may use."""
    task: dict[str, object] = {"type": replica.role.name.lower(), "index": replica.index}
    resources, own = replica.role.resources, replica.address(replica.role.name, replica.index)
    if replica.role.name == "Worker":
        task["resources"] = {"cpu_procs": int(resources.cpus), "phy_mem": resources.memory_bytes}
    detail = {"cluster": replica.cluster(("Scheduler", "WebService")), "task": task}
    values = {
        "MARS_CLUSTER_DETAIL": json.dumps(detail),
        "MARS_CPU_TOTAL": str(max(1, int(resources.cpus))),
        "MARS_CPU_USE_PROCESS_STAT": "1",
        "MARS_MEM_USE_CGROUP_STAT": "1",
        "MARS_BIND_PORT": str(own.port),
        "MARS_CONTAINER_IP": own.host,
    }
    if resources.memory_bytes:
        values["MARS_MEMORY_TOTAL"] = str(resources.memory_bytes)
    if replica.role.name == "Worker":
        values |= {name: str(replica.job.options[key]) for key, name in _TUNING.items() if key in replica.job.options}
    return values


FRAMEWORK = Framework(
    name="mars",
    kind="MarsJob",
    short="mars",
    replica_specs="marsReplicaSpecs",
    container="mars",
    port=11111,
    roles=(
        RoleRule("Scheduler", RestartPolicy.NEVER, is_chief=True),
        RoleRule("Worker", RestartPolicy.EXIT_CODE, after=("Scheduler",)),
        RoleRule("WebService", RestartPolicy.ALWAYS, after=("Scheduler",)),
    ),
    environment=environment,
    succeeded=done_with("Scheduler"),
    clean_policy=CleanPolicy.NONE,
    options={
        "workerCachePercentage": Option(0, 100, group=_GROUP),
        **{name: Option(is_text=True, group=_GROUP) for name in _TUNING},
    },
)

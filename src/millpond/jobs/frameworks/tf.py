"""TFJob: parameter servers, workers, a chief or master, an evaluator, and GraphLearn servers."""

from __future__ import annotations

import json

from millpond.api.job import CleanPolicy, JobSpec, ReplicaPhase, RestartPolicy, SuccessPolicy
from millpond.jobs.frameworks.base import Framework, PhaseOf, Replica, RoleRule, is_role_done

_CLUSTER = ("PS", "Worker", "Chief", "Master")


def environment(replica: Replica) -> dict[str, str]:
    """TF_CONFIG for a distributed job, and where the GraphLearn servers are."""
    values = {}
    if replica.job.num_replicas > 1:
        task = {"type": replica.role.name.lower(), "index": replica.index}
        config = {"cluster": replica.cluster(_CLUSTER), "task": task, "environment": "cloud"}
        values["TF_CONFIG"] = json.dumps(config)
    servers = replica.cluster(("GraphLearn",)).get("graphlearn")  # found its own way, not through TF_CONFIG
    if servers:
        clients = replica.num_members(("Worker", "Chief", "Master"))
        values["GRAPH_LEARN_CLUSTER"] = json.dumps({"server": ",".join(servers), "client_count": clients})
        values["GRAPH_LEARN_TASK_INDEX"] = str(replica.index)
    return values


def succeeded(job: JobSpec, phase_of: PhaseOf) -> bool:
    """The chief decides, else worker 0; AllWorkers asks for every worker as well."""
    chief = next((name for name in ("Chief", "Master") if job.role(name) is not None), None)
    workers_done = job.role("Worker") is None or is_role_done(job, phase_of, "Worker")
    if chief is not None:
        wants_workers = job.success_policy is SuccessPolicy.ALL_WORKERS
        return is_role_done(job, phase_of, chief) and (workers_done or not wants_workers)
    if job.success_policy is SuccessPolicy.ALL_WORKERS or job.role("Worker") is None:
        return workers_done and job.role("Worker") is not None
    return phase_of("Worker", 0) is ReplicaPhase.SUCCEEDED


FRAMEWORK = Framework(
    name="tf",
    kind="TFJob",
    short="tf",
    replica_specs="tfReplicaSpecs",
    container="tensorflow",
    port=2222,
    roles=(
        RoleRule("AIMaster", RestartPolicy.NEVER, is_member=False),
        RoleRule("PS", RestartPolicy.EXIT_CODE),
        RoleRule("GraphLearn", RestartPolicy.EXIT_CODE),
        RoleRule("Chief", RestartPolicy.EXIT_CODE, after=("PS", "GraphLearn"), is_chief=True),
        RoleRule("Master", RestartPolicy.EXIT_CODE, after=("PS", "GraphLearn"), is_chief=True),
        RoleRule("Worker", RestartPolicy.EXIT_CODE, after=("PS", "GraphLearn")),
        RoleRule("Evaluator", RestartPolicy.EXIT_CODE),
    ),
    environment=environment,
    succeeded=succeeded,
    clean_policy=CleanPolicy.RUNNING,
)

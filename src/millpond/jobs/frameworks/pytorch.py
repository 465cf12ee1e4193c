"""PyTorchJob: a master and workers that meet at the master's address."""

from __future__ import annotations

from millpond.api.job import CleanPolicy, RestartPolicy
from millpond.jobs.frameworks.base import Framework, Option, Replica, RoleRule, done_with

_MEMBERS = ("Master", "Worker")


def environment(replica: Replica) -> dict[str, str]:
    """What torch.distributed and torchrun read."""
    members = [role for role in _MEMBERS if replica.job.role(role) is not None]
    master = replica.address(members[0]) if members else replica.address(replica.role.name)
    is_master = replica.role.name == members[0] and replica.index == 0 if members else True
    host = "localhost" if is_master else master.host
    values = {
        "MASTER_ADDR": host,
        "MASTER_PORT": str(master.port),
        "WORLD_SIZE": str(replica.num_members(_MEMBERS)),
        "PYTHONUNBUFFERED": "1",
    }
    if replica.role.name in _MEMBERS:
        values["RANK"] = str(replica.rank_after(_MEMBERS))
    processes = replica.job.options.get("nprocPerNode")
    if processes is not None:
        values |= {
            "PET_NPROC_PER_NODE": str(processes),
            "PET_NNODES": values["WORLD_SIZE"],
            "PET_NODE_RANK": values.get("RANK", "0"),
            "PET_MASTER_ADDR": host,
            "PET_MASTER_PORT": values["MASTER_PORT"],
        }
    return values


FRAMEWORK = Framework(
    name="pytorch",
    kind="PyTorchJob",
    short="py",
    replica_specs="pytorchReplicaSpecs",
    container="pytorch",
    port=23456,
    roles=(
        RoleRule("AIMaster", RestartPolicy.NEVER, is_member=False),
        RoleRule("Master", RestartPolicy.EXIT_CODE, after=("AIMaster",), is_chief=True),
        RoleRule("Worker", RestartPolicy.ON_FAILURE, after=("Master",)),
    ),
    environment=environment,
    succeeded=done_with("Master", "Worker"),
    clean_policy=CleanPolicy.NONE,
    options={"nprocPerNode": Option(1, 1024, choices=("auto", "gpu", "cpu"))},
)

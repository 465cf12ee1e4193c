"""MPIJob: workers wait, the launcher reaches them through a hostfile and a remote-shell agent."""

from __future__ import annotations

from millpond.api.job import CleanPolicy, RestartPolicy
from millpond.jobs.frameworks.base import Framework, Option, Replica, RoleRule, done_with

_DIRECTORY = "MILLPOND_JOB_DIR"  # the controller expands $MILLPOND_JOB_DIR in values
# Every worker is a process on a host that shares our files: the agent drops the host's name and runs the command.
_AGENT = '#!/bin/sh\nshift\nexec /bin/sh -c "$*"\n'


def environment(replica: Replica) -> dict[str, str]:
    """Where the launcher's mpirun finds agent and hosts, per MPI distribution."""
    if replica.role.name != "Launcher":
        return {}
    agent, hosts = f"${_DIRECTORY}/kubexec.sh", f"${_DIRECTORY}/hostfile"
    match replica.job.options.get("mpiDistribution"):
        case "IntelMPI":
            return {"I_MPI_HYDRA_BOOTSTRAP_EXEC": agent, "I_MPI_HYDRA_HOST_FILE": hosts}
        case "MPICH":
            return {"HYDRA_LAUNCHER_EXEC": agent, "HYDRA_HOST_FILE": hosts}
        case _:
            return {"OMPI_MCA_plm_rsh_agent": agent, "OMPI_MCA_orte_default_hostfile": hosts}


def files(replica: Replica) -> dict[str, str]:
    """The hostfile and the agent, beside the launcher."""
    if replica.role.name != "Launcher":
        return {}
    worker = replica.job.role("Worker")
    slots = replica.job.options.get("slotsPerWorker", 1)
    is_open_mpi = replica.job.options.get("mpiDistribution", "OpenMPI") == "OpenMPI"
    line = "{} slots={}\n" if is_open_mpi else "{}:{}\n"
    names = [f"{replica.job.name}-worker-{index}" for index in range(worker.replicas if worker else 0)]
    return {"hostfile": "".join(line.format(name, slots) for name in names), "kubexec.sh": _AGENT}


FRAMEWORK = Framework(
    name="mpi",
    kind="MPIJob",
    short="mpi",
    replica_specs="mpiReplicaSpecs",
    container="mpi",
    port=2222,
    roles=(
        RoleRule("Worker", RestartPolicy.NEVER, default_command=("sleep", "365d")),
        RoleRule("Launcher", RestartPolicy.NEVER, after=("Worker",), is_chief=True, is_member=False),
    ),
    environment=environment,
    files=files,
    succeeded=done_with("Launcher"),
    clean_policy=CleanPolicy.RUNNING,
    options={
        "slotsPerWorker": Option(1, 1024, default=1),
        "mpiDistribution": Option(choices=("OpenMPI", "IntelMPI", "MPICH"), default="OpenMPI"),
    },
)

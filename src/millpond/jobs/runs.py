"""From a job's state to what the scheduler is asked and what a cluster starts.

Pure: puts together the framework's environment, ports, devices, code and helpers of one replica. Called by the
controller.
"""

from __future__ import annotations

from collections.abc import Callable

from millpond.api.job import JobSpec, StartPhase
from millpond.jobs.clusters.base import Run, RunId
from millpond.jobs.frameworks.base import Address, Replica
from millpond.jobs.scheduling.types import (
    AggregationRequest,
    GangRequest,
    Phase,
    ResourceRequest,
    RoleRequest,
    StartEdge,
)
from millpond.jobs.state import CODE_SYNC, TENSORBOARD, JobState, ReplicaState

HostOf = Callable[[str, str, int, str], str]  # uid, role, index, node -> host

_DEVICE_VARIABLES = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ASCEND_RT_VISIBLE_DEVICES")
_PHASES = {
    StartPhase.CREATED: Phase.CREATED,
    StartPhase.RUNNING: Phase.RUNNING,
    StartPhase.SUCCEEDED: Phase.SUCCEEDED,
}
_START_TIMEOUT_S = 300.0
_LONG_START_S = 30 * 86400.0  # an upstream role must end first, and a role may run for long
# $1 source, $2 destination, $3 branch, $4 revision, $5 depth. A half-made copy of an earlier attempt is thrown away.
_GIT = """
set -e
rm -rf -- "$2"
set -- "$1" "$2" "$3" "$4" "$5"
git clone ${5:+--depth "$5"} ${3:+--branch "$3"} -- "$1" "$2"
[ -z "$4" ] || { cd "$2"; git checkout --quiet --detach "$4" -- ; }
"""


def gang_request(state: JobState) -> GangRequest:
    """What the scheduler is asked for: every role of the job."""
    spec = state.spec
    minima = _minima(spec)
    roles = tuple(
        RoleRequest(
            name=role.name,
            replicas=role.replicas,
            resources=ResourceRequest(
                role.resources.devices,
                role.resources.device_type,
                role.resources.cpus,
                role.resources.memory_bytes,
            ),
            min_replicas=minima.get(role.name),
            after=tuple(StartEdge(edge.role, _PHASES[edge.phase]) for edge in role.after or ()),
        )
        for role in spec.roles
        if role.replicas
    )
    waits_for_end = any(edge.phase is StartPhase.SUCCEEDED for role in spec.roles for edge in role.after or ())
    return GangRequest(
        job_id=state.uid,
        tenant=spec.tenant,
        roles=roles,
        priority=spec.priority,
        submitted_s=state.created_s,
        run_s_estimate=spec.run_estimate_s or spec.active_deadline_s,
        preemptible=spec.preemptible,
        aggregation=_aggregation(spec),
        spot=any(role.spot is not None and role.spot.replicas for role in spec.roles),
        start_timeout_s=_LONG_START_S if waits_for_end or spec.code is not None else _START_TIMEOUT_S,
        selector=tuple(sorted({pair for role in spec.roles for pair in role.node_selector.items()})),
    )


def _minima(spec: JobSpec) -> dict[str, int]:
    """With how few replicas each role may start. A minimum of the whole job is taken from its largest role."""
    minima = {role.name: role.min_replicas for role in spec.roles if role.min_replicas is not None}
    if not minima and spec.min_available is not None and spec.min_available < spec.num_replicas:
        largest = max(spec.roles, key=lambda role: role.replicas)
        minima[largest.name] = max(1, largest.replicas - (spec.num_replicas - spec.min_available))
    return minima


def _aggregation(spec: JobSpec) -> AggregationRequest | None:
    if not spec.aggregate:
        return None
    widest = max(spec.roles, key=lambda role: role.replicas * role.resources.devices)
    return AggregationRequest(widest.name) if widest.resources.devices == 1 else None


def make_run(state: JobState, replica: ReplicaState, host_of: HostOf) -> Run:
    """What the cluster is told to start."""
    run_id = RunId(state.uid, replica.role, replica.index, replica.attempt)
    if replica.role == CODE_SYNC:
        return _code_run(state, run_id)
    if replica.role == TENSORBOARD:
        return _board_run(state, run_id, replica)
    spec = state.running_spec
    role = spec.role(replica.role)
    assert role is not None
    addresses = {
        (other.role, other.index): Address(host_of(state.uid, other.role, other.index, other.node), other.port)
        for other in state.replicas
    }
    view = Replica(spec, role, replica.index, state.uid, addresses, replica.rank)
    env = state.submit_env | _own_environment(state, replica) | role.env | state.framework.environment(view)
    return Run(
        id=run_id,
        command=role.command,
        env=env,
        working_dir=_working_dir(state, role.working_dir),
        files=state.framework.files(view),
        node=replica.node,
    )


def _own_environment(state: JobState, replica: ReplicaState) -> dict[str, str]:
    """What every process gets, whatever its framework; the role's own variables win."""
    spec = state.spec
    role = spec.role(replica.role)
    assert role is not None
    visible = ",".join(map(str, replica.group or replica.device_ids))
    values = {
        "MILLPOND_JOB_NAME": spec.name,
        "MILLPOND_JOB_NAMESPACE": spec.namespace,
        "MILLPOND_JOB_PORT": str(replica.port),
        "MILLPOND_JOB_ATTEMPT": str(replica.attempt),
        "OMP_NUM_THREADS": str(max(1, int(role.resources.cpus))),
        "LOCAL_RANK": str(replica.local_rank),
        "LOCAL_WORLD_SIZE": str(replica.group_size),
    }
    values |= dict.fromkeys(_DEVICE_VARIABLES, visible)
    if spec.model_version is not None:
        values["KUBEDL_MODEL_PATH"] = spec.model_version.path
    if spec.tensorboard is not None:
        values["TENSORBOARD_LOG_DIR"] = spec.tensorboard.log_dir
    if role.spot is not None and replica.index >= role.replicas - role.spot.replicas:
        values["MILLPOND_JOB_SPOT"] = "1"
    return values


def _working_dir(state: JobState, asked: str) -> str:
    """Relative to the fetched code when there is code, else to where the job was submitted."""
    if state.spec.code is not None:
        return f"{state.spec.code.dest}/{asked}" if asked else state.spec.code.dest
    if asked.startswith("/"):
        return asked
    return f"{state.submit_dir}/{asked}" if asked else state.submit_dir or "/"


def _code_run(state: JobState, run_id: RunId) -> Run:
    code = state.spec.code
    assert code is not None
    depth = str(code.depth) if code.depth else ""
    command = ("/bin/sh", "-c", _GIT, "git-sync", code.source, code.dest, code.branch, code.revision, depth)
    env = state.submit_env | code.env | {"GIT_TERMINAL_PROMPT": "0"}
    return Run(run_id, command, env, working_dir="")


def _board_run(state: JobState, run_id: RunId, replica: ReplicaState) -> Run:
    board = state.spec.tensorboard
    assert board is not None
    directory = board.log_dir if board.log_dir.startswith("/") else f"{_working_dir(state, '')}/{board.log_dir}"
    command = ("tensorboard", "--logdir", directory, "--host", "127.0.0.1", "--port", str(replica.port))
    return Run(run_id, command, dict(state.submit_env), working_dir=_working_dir(state, ""))

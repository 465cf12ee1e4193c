"""What every client of jobs and deployments does with what it was told, wherever that comes from: wait, sort, choose.

Knows no store and no cluster. Called by the clients of this machine, of Kubernetes and of deployments.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from millpond.api.job import JobNotFoundError, JobPhase, JobStatus, ReplicaPhase, ReplicaStatus
from millpond.base.suggest import did_you_mean
from millpond.jobs.state import JobState

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class NodeStatus:
    """A machine of the cluster: what it has and what jobs hold of it."""

    name: str
    address: str
    cpus: float
    memory_bytes: int
    devices: int
    device_type: str
    used_cpus: float = 0.0
    used_memory_bytes: int = 0
    used_devices: int = 0
    instances: tuple[str, ...] = ()
    is_up: bool = True


def wait_until(look: Callable[[], _T], until: Callable[[_T], bool], timeout_s: float, every_s: float) -> _T:
    """Looks until something is as wanted, or the time is over; returns how it is then."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = look()
        if until(found) or time.monotonic() >= deadline:
            return found
        time.sleep(every_s)


def in_queue(jobs: Iterable[JobStatus]) -> list[JobStatus]:
    """Those that wait, in the scheduler's order."""

    def place(job: JobStatus) -> tuple[int, float]:
        position = job.explanation.get("position")
        return (position if isinstance(position, int) else 1 << 30, job.created_s)

    waiting = [job for job in jobs if job.phase in (JobPhase.CREATED, JobPhase.QUEUING) and job.kind != "Cron"]
    return sorted(waiting, key=place)


def ended_before(jobs: Iterable[JobStatus], limit_s: float) -> list[str]:
    """The uids of those that had ended by then."""
    return [job.uid for job in jobs if job.finished_s is not None and job.finished_s <= limit_s]


def runs_with(status: JobStatus, role: str, replicas: int) -> bool:
    """Whether a role has so many replicas and all of them run."""
    found = [replica for replica in status.replicas if replica.role == role]
    return len(found) == replicas and all(replica.phase is ReplicaPhase.RUNNING for replica in found)


def find_replica(status: JobStatus, name: str | None) -> ReplicaStatus:
    """A replica of a job by its name; without one the chief.

    Raises:
        JobNotFoundError: The job has no such replica.
    """
    if name is None:
        chiefs = [replica for replica in status.replicas if replica.is_chief]
        candidates = chiefs or list(status.replicas)
    else:
        candidates = [replica for replica in status.replicas if replica.name == name]
    if not candidates:
        near = did_you_mean(name or "", [replica.name for replica in status.replicas])
        raise JobNotFoundError(f"Job '{status.name}' has no instance '{name}'.", fix=near, param="instance")
    return candidates[0]


def with_replica(node: NodeStatus, state: JobState, role_name: str, index: int) -> NodeStatus:
    """A machine with one replica more."""
    role = state.spec.role(role_name)
    assert role is not None
    return dataclasses.replace(
        node,
        used_cpus=node.used_cpus + role.resources.cpus,
        used_memory_bytes=node.used_memory_bytes + role.resources.memory_bytes,
        used_devices=node.used_devices + role.resources.devices,
        instances=(*node.instances, f"{state.spec.name}-{role_name.lower()}-{index}"),
    )

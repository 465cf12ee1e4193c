"""The seam between the controller and where processes run.

A run is one attempt of one replica. Starting is idempotent by run id: told twice, a cluster starts it once. The local
cluster, a Kubernetes one and the simulator stand behind this protocol.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from millpond.jobs.scheduling.types import NodeSpec


@dataclass(frozen=True, slots=True)
class RunId:
    """One attempt of one replica of one job."""

    uid: str
    role: str
    index: int
    attempt: int

    def __str__(self) -> str:
        return f"{self.uid}/{self.role.lower()}-{self.index}/{self.attempt}"


@dataclass(frozen=True, slots=True)
class Run:
    """What to start.

    Attributes:
        working_dir: Absolute, or relative to the directory that the job's code is put in.
        files: Put beside the process before it starts; $MILLPOND_JOB_DIR in values of `env` becomes their directory.
    """

    id: RunId
    command: tuple[str, ...]
    env: dict[str, str]
    working_dir: str = ""
    files: dict[str, str] = field(default_factory=dict)
    node: str = ""


@dataclass(frozen=True, slots=True)
class RunReport:
    """What became of a run: it runs (`exit_code` None), or it ended."""

    id: RunId
    at_s: float
    pid: int = 0
    exit_code: int | None = None
    reason: str = ""


class Cluster(Protocol):
    """Where runs live. Calls return soon; what happens later comes out of `poll`."""

    def nodes(self) -> Sequence[NodeSpec]:
        """The machines there are."""
        ...

    def take_ports(self, count: int, taken: Collection[int]) -> list[int]:
        """Ports nobody uses now, none of them in `taken`; 0 where each replica has an address of its own."""
        ...

    def host_of(self, uid: str, role: str, index: int, node: str) -> str:
        """The name or address other replicas reach a replica by."""
        ...

    def start(self, run: Run) -> None:
        """Starts a run, or does nothing when it was started before; trouble comes out of `poll` as an end."""
        ...

    def watch(self, run_id: RunId) -> None:
        """After a restart of the controller: go on reporting about a run that was started before."""
        ...

    def stop(self, run_id: RunId, *, force: bool) -> None:
        """Asks the run's processes to end; `force` does not ask."""
        ...

    def poll(self) -> list[RunReport]:
        """What happened since the last call; each fact once."""
        ...

    def remove(self, uid: str) -> None:
        """Removes logs and directories of a job's runs."""
        ...

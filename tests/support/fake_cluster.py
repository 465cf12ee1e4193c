"""A cluster without processes: a test says what happens to each run, and sees what was asked for.

Keeps the promise of `Cluster`: a run id starts at most once. Survives the controller, as real processes do.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from millpond.api.topology import plain_wiring
from millpond.jobs.clusters.base import Run, RunId, RunReport
from millpond.jobs.scheduling.types import NodeSpec


class FakeCluster:
    """One node with `cpus` processors and `devices` accelerators."""

    def __init__(self, clock: Callable[[], float], cpus: float = 8.0, devices: int = 0) -> None:
        self._clock = clock
        self._node = NodeSpec("node", plain_wiring(devices), cpus=cpus, memory_bytes=1 << 34)
        self._port = 20000
        self.runs: dict[RunId, Run] = {}
        self.live: dict[RunId, Run] = {}
        self.ended: dict[RunId, RunReport] = {}
        self.watched: dict[RunId, bool] = {}
        self.removed: list[str] = []
        self.obeys_stop = True
        self.repeats: Callable[[list[RunReport]], list[RunReport]] | None = None  # what is reported once more
        self._said: list[RunReport] = []

    def nodes(self) -> Sequence[NodeSpec]:
        return (self._node,)

    def take_ports(self, count: int, taken: Collection[int]) -> list[int]:
        first, self._port = self._port, self._port + count
        return list(range(first, first + count))

    def host_of(self, uid: str, role: str, index: int, node: str) -> str:
        return node

    def start(self, run: Run) -> None:
        self.watched.setdefault(run.id, False)
        if run.id in self.runs:
            return
        twins = [other for other in self.live if (other.uid, other.role, other.index) == _replica_of(run.id)]
        assert not twins, f"{run.id} was started while {twins[0]} lives"
        self.runs[run.id] = self.live[run.id] = run

    def watch(self, run_id: RunId) -> None:
        self.watched.setdefault(run_id, True)

    def stop(self, run_id: RunId, *, force: bool) -> None:
        if run_id in self.live and (force or self.obeys_stop):
            self.end(run_id, 137 if force else 143)

    def poll(self) -> list[RunReport]:
        reports = []
        for run_id, was_reported in list(self.watched.items()):
            if not was_reported:
                self.watched[run_id] = True
                reports.append(RunReport(run_id, self._clock(), pid=1000))
            if run_id in self.ended:
                del self.watched[run_id]
                reports.append(self.ended[run_id])
        self._said += reports
        return reports if self.repeats is None else [*reports, *self.repeats(self._said)]

    def remove(self, uid: str) -> None:
        self.removed.append(uid)

    def end(self, run_id: RunId, exit_code: int, reason: str = "") -> None:
        """The run's process ends."""
        del self.live[run_id]
        self.ended[run_id] = RunReport(run_id, self._clock(), exit_code=exit_code, reason=reason)

    def forget_controller(self) -> None:
        """The controller died; the next one must ask again."""
        self.watched.clear()

    def find(self, role: str, index: int = 0) -> RunId:
        """The live run of a replica."""
        return next(run_id for run_id in self.live if (run_id.role, run_id.index) == (role, index))


def _replica_of(run_id: RunId) -> tuple[str, str, int]:
    return run_id.uid, run_id.role, run_id.index

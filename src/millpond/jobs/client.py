"""The jobs of a data directory, for programs on the same machine: submit, look, read logs, delete.

Writes to the store and wakes the controller, which is started when there is none. Every verb of the command line and
of the REST API is a method here. Knows nothing about terminals and HTTP.
"""

from __future__ import annotations

import dataclasses
import json
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from millpond.api.job import (
    JobExistsError,
    JobNotFoundError,
    JobSpec,
    JobStatus,
    ReplicaStatus,
)
from millpond.base.suggest import did_you_mean
from millpond.jobs.clusters.local import LocalCluster
from millpond.jobs.looking import NodeStatus, ended_before, find_replica, in_queue, runs_with, wait_until, with_replica
from millpond.jobs.resizing import check_size, elastic_role
from millpond.jobs.service import JobsPlace, ensure_controller
from millpond.jobs.spec import load_jobs
from millpond.jobs.state import JobState, make_job_state
from millpond.jobs.status import job_status
from millpond.jobs.store import EventRecord, JobStore, ModelVersionRecord

_LOOK_EVERY_S = 0.1
_CHUNK = 1 << 16


class JobsClient:
    """Jobs of one directory.

    Args:
        root: The jobs directory.
        environment: What submitted jobs inherit.
        working_dir: Where their commands run.
        starts_controller: Whether a controller is started when there is none.
    """

    def __init__(
        self,
        root: Path,
        environment: dict[str, str] | None = None,
        working_dir: str = "",
        *,
        starts_controller: bool = True,
    ) -> None:
        self._place = JobsPlace(root)
        self._store = JobStore(self._place.jobs_database)
        self._environment = environment or {}
        self._working_dir = working_dir
        self._starts_controller = starts_controller

    def close(self) -> None:
        """Closes the store."""
        self._store.close()

    def revive(self) -> None:
        """Starts a controller if there are jobs that need one and it is gone, as after a crash or a reboot."""
        if self._starts_controller and self._store.has_work():
            ensure_controller(self._place)

    def submit(self, text: str) -> list[JobStatus]:
        """Submits every job of a YAML text, or none.

        Raises:
            SpecError: The text is wrong.
            JobExistsError: A name is taken.
        """
        return self.submit_specs(load_jobs(text))

    def submit_texts(self, texts: Sequence[str], notes: Sequence[str] = ()) -> list[JobStatus]:
        """Submits every job of several YAML texts, or none; `notes` are kept with each job."""
        specs = [spec for text in texts for spec in load_jobs(text)]
        return self.submit_specs([dataclasses.replace(spec, notes=(*spec.notes, *notes)) for spec in specs])

    def submit_specs(self, specs: Sequence[JobSpec]) -> list[JobStatus]:
        """Submits jobs, all or none."""
        now_s = time.time()
        states = [
            make_job_state(spec, uuid.uuid4().hex, now_s, self._working_dir, self._environment) for spec in specs
        ]
        self._wake()  # before as well: without a controller nothing is created
        self._store.submit(states)
        self._wake()
        return [job_status(state) for state in states]

    def jobs(self, namespace: str | None = None, *, with_deleted: bool = False) -> list[JobStatus]:
        """Jobs, newest first."""
        records = self._store.records(namespace=namespace, deleted=with_deleted)
        return [job_status(record.state, record.explanation) for record in records]

    def get(self, name: str, namespace: str | None = None) -> JobStatus:
        """A job by name or uid; one that was deleted is found when no other has its name.

        Raises:
            JobNotFoundError: There is none.
        """
        found = self._find(name, namespace)
        return found[1]

    def spec(self, name: str, namespace: str | None = None) -> JobSpec:
        """What was asked for."""
        return self._find(name, namespace)[0].spec

    def events(self, status: JobStatus) -> list[EventRecord]:
        """What happened to a job, oldest first."""
        return self.events_of(status.uid)

    def events_of(self, uid: str) -> list[EventRecord]:
        """What happened under a uid, oldest first."""
        return self._store.events(uid)

    def model_versions(self) -> list[ModelVersionRecord]:
        """Versions of models that jobs left behind."""
        return self._store.model_versions()

    def queue(self) -> list[JobStatus]:
        """Jobs that wait, in the scheduler's order."""
        return in_queue(self.jobs())

    def delete(self, names: Sequence[str], namespace: str | None = None, wait_s: float = 20.0) -> list[JobStatus]:
        """Deletes jobs and waits until their processes are gone; records stay.

        Raises:
            JobNotFoundError: One of them is not there; then none is deleted.
        """
        found = [self._find(name, namespace)[1] for name in names]
        gone = [status for status in found if status.deleted_s is not None]
        if gone:
            raise JobNotFoundError(f"Job '{gone[0].name}' was deleted before.", param="name")
        with self._store.transaction():
            for status in found:
                self._store.ask(status.uid, "delete")
        self._wake()
        deadline = time.monotonic() + wait_s
        while time.monotonic() < deadline:
            now = [self._find(status.uid, None)[1] for status in found]
            if all(status.deleted_s is not None for status in now):
                return now
            time.sleep(_LOOK_EVERY_S / 2)
        return [self._find(status.uid, None)[1] for status in found]

    def prune(self, older_than_s: float, namespace: str | None = None) -> list[JobStatus]:
        """Deletes jobs that ended so long ago."""
        old = ended_before(self.jobs(namespace), time.time() - older_than_s)
        return self.delete(old) if old else []

    def scale(
        self, name: str, replicas: int, role: str | None = None, namespace: str | None = None
    ) -> tuple[JobStatus, str]:
        """Gives a role another number of replicas; the job starts again with them, from its last checkpoint.

        Args:
            name: The job.
            replicas: How many.
            role: The role; without it the one that can have several.
            namespace: Its namespace.

        Returns:
            The job as it was, and the role.

        Raises:
            JobNotFoundError: There is no such job or role, or the job has ended.
            SpecError: The role cannot have so many.
        """
        state, status = self._find(name, namespace)
        if state.is_final or state.is_deleting or state.cron is not None:
            raise JobNotFoundError(f"'{name}' does not run and does not wait.", param="name")
        target = check_size(state.spec, role, replicas)
        self._store.ask(status.uid, f"scale:{target.name}={replicas}")
        self._wake()
        return status, target.name

    def replicas_of(self, name: str, namespace: str | None = None, role: str | None = None) -> int:
        """How many replicas a role has or shall have; without one the role that is scaled."""
        state = self._find(name, namespace)[0]
        found = elastic_role(state.spec, role)
        return state.resize.get(found.name, found.replicas)

    def wait_size(self, uid: str, role: str, replicas: int, timeout_s: float) -> bool:
        """Waits until a job runs with so many replicas of a role; returns whether it does."""
        return runs_with(self.wait(uid, lambda status: runs_with(status, role, replicas), timeout_s), role, replicas)

    def suspend(self, name: str, namespace: str | None = None, *, resume: bool = False) -> JobStatus:
        """Stops a cron from making jobs, or lets it go on."""
        status = self.get(name, namespace)
        if status.kind != "Cron":
            raise JobNotFoundError(f"'{name}' is a job, not a cron.", param="name")
        self._store.ask(status.uid, "resume" if resume else "suspend")
        self._wake()
        return status

    def is_suspended(self, status: JobStatus) -> bool:
        """Whether a cron makes no jobs now."""
        cron = self._find(status.uid, None)[0].cron
        return cron is not None and cron.is_suspended

    def nodes(self) -> list[NodeStatus]:
        """The machines and what jobs hold of them; none before the first controller ran."""
        known = json.loads(self._store.fact("nodes") or "[]")
        nodes = {node["name"]: NodeStatus(**node) for node in known}
        for record in self._store.records():
            for replica in record.state.live:
                if replica.node in nodes:
                    nodes[replica.node] = with_replica(nodes[replica.node], record.state, replica.role, replica.index)
        return list(nodes.values())

    def log_path(self, status: JobStatus, replica: ReplicaStatus) -> Path:
        """The file that a replica's output goes to."""
        return LocalCluster.log_path_in(self._place.root, status.uid, replica.role, replica.index)

    def run_path(self, status: JobStatus, replica: ReplicaStatus) -> Path:
        """The description of a replica's last start."""
        runs = self.log_path(status, replica).parent
        attempts = [path for path in runs.glob("*/run.json") if path.parent.name.isdigit()]
        if not attempts:
            raise JobNotFoundError(f"{replica.name} has not been started.", fix=status.waiting)
        return max(attempts, key=lambda path: int(path.parent.name))

    def find_replica(self, status: JobStatus, name: str | None) -> ReplicaStatus:
        """A replica by its name; without one the chief.

        Raises:
            JobNotFoundError: The job has no such replica.
        """
        return find_replica(status, name)

    def logs(
        self, status: JobStatus, replica: ReplicaStatus, *, follow: bool = False, tail: int | None = None
    ) -> Iterator[bytes]:
        """A replica's output in pieces; with `follow` until the replica has ended for good."""
        path = self.log_path(status, replica)
        position = _tail_position(path, tail) if tail is not None else 0
        while True:
            is_over = not follow or self._is_over(status.uid, replica)
            while True:
                piece = _read_piece(path, position)
                if not piece:
                    break
                position += len(piece)
                yield piece
            if is_over:
                return
            time.sleep(_LOOK_EVERY_S)

    def wait(self, name: str, until: Callable[[JobStatus], bool], timeout_s: float) -> JobStatus:
        """Waits until a job is as wanted, or the time is over; returns how it is then."""
        return wait_until(lambda: self.get(name), until, timeout_s, _LOOK_EVERY_S)

    def _is_over(self, uid: str, replica: ReplicaStatus) -> bool:
        state = self._find(uid, None)[0]
        now = state.replica(replica.role, replica.index)
        return state.deleted_s is not None or now is None or now.has_ended or (state.is_final and not now.is_live)

    def _find(self, name: str, namespace: str | None) -> tuple[JobState, JobStatus]:
        records = self._store.find(name, namespace)
        if not records:
            names = [record.state.spec.name for record in self._store.records(namespace=namespace)]
            where = f" in namespace '{namespace}'" if namespace is not None else ""
            near = did_you_mean(name, names) or "See `millpond jobs list`."
            raise JobNotFoundError(f"There is no job '{name}'{where}.", fix=near, param="name")
        spaces = {record.state.spec.namespace for record in records if record.state.deleted_s is None}
        if len(spaces) > 1:
            raise JobExistsError(f"Several jobs are called '{name}'.", fix=f"Say which with -n: {sorted(spaces)}.")
        return records[0].state, job_status(records[0].state, records[0].explanation)

    def _wake(self) -> None:
        if self._starts_controller:
            ensure_controller(self._place)


def _read_piece(path: Path, position: int) -> bytes:
    try:
        with open(path, "rb") as file:
            file.seek(position)
            return file.read(_CHUNK)
    except FileNotFoundError:
        return b""


def _tail_position(path: Path, lines: int) -> int:
    """Where the last `lines` lines begin; reads the file from its end."""
    try:
        with open(path, "rb") as file:
            end = position = file.seek(0, 2)
            if lines <= 0:
                return end
            found = -1 if _ends_with_newline(file, end) else 0
            while position > 0:
                step = min(_CHUNK, position)
                position -= step
                file.seek(position)
                piece = file.read(step)
                for offset in range(len(piece) - 1, -1, -1):
                    found += piece[offset] == 10
                    if found == lines:
                        return position + offset + 1
            return 0
    except FileNotFoundError:
        return 0


def _ends_with_newline(file: BinaryIO, end: int) -> bool:
    if end == 0:
        return False
    file.seek(end - 1)
    return file.read(1) == b"\n"

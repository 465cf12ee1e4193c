"""The store of jobs: what was submitted, how far it has come, its events, and what is left of deleted jobs.

One database, a file or a PostgreSQL by URL, shared by the command line (submits, asks for deletion, reads) and the one
controller (writes states). What is committed stays committed. Knows nothing about processes and scheduling, and of the
database no more than `store_database.Database` says.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from millpond.api.job import JobExistsError
from millpond.base.errors import MillpondError
from millpond.jobs.state import JobState
from millpond.jobs.store_database import open_database, without_password

# What each version of the tables adds to the one before; a database of an earlier version is brought up to date.
_MIGRATIONS = (
    """
CREATE TABLE IF NOT EXISTS jobs (
    number {serial},
    uid TEXT NOT NULL UNIQUE,
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    framework TEXT NOT NULL,
    tenant TEXT NOT NULL,
    phase TEXT NOT NULL,
    created_s {real} NOT NULL,
    finished_s {real},
    deleted_s {real},
    state {blob} NOT NULL,
    explanation TEXT
);
CREATE UNIQUE INDEX IF NOT EXISTS jobs_by_name ON jobs (namespace, name) WHERE deleted_s IS NULL;
CREATE TABLE IF NOT EXISTS events (
    number {serial}, uid TEXT NOT NULL, at_s {real} NOT NULL, kind TEXT NOT NULL,
    reason TEXT NOT NULL, message TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS events_by_job ON events (uid);
CREATE TABLE IF NOT EXISTS commands (
    number {serial}, uid TEXT NOT NULL, verb TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS model_versions (
    name TEXT PRIMARY KEY, model TEXT NOT NULL, path TEXT NOT NULL, uid TEXT NOT NULL, created_s {real} NOT NULL,
    created_by TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
""",
)


@dataclass(frozen=True, slots=True)
class EventRecord:
    """Something that happened to a job, for people."""

    at_s: float
    kind: str  # Normal or Warning
    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A row: the state and what the scheduler last said about it."""

    number: int
    state: JobState
    explanation: dict[str, object]


@dataclass(frozen=True, slots=True)
class ModelVersionRecord:
    """A version of a model that a job left behind."""

    name: str
    model: str
    path: str
    uid: str
    created_s: float
    created_by: str


class ControllerStore(Protocol):
    """What a controller needs of a store; `JobStore` is the one on this machine."""

    def transaction(self) -> AbstractContextManager[None]:
        """All of it or nothing."""
        ...

    def load(self, after: int = 0) -> list[JobRecord]:
        """Jobs that are not deleted, with a number above `after`, oldest first."""
        ...

    def wishes(self) -> list[tuple[int, str, str]]:
        """Wishes not yet granted: number, uid, verb."""
        ...

    def grant(self, numbers: Iterable[int]) -> None:
        """Forgets wishes."""
        ...

    def add(self, state: JobState) -> None:
        """Adds a job that the controller made itself."""
        ...

    def save(self, states: Iterable[JobState]) -> None:
        """Writes states."""
        ...

    def add_events(self, events: Iterable[tuple[str, EventRecord]]) -> None:
        """Adds events of jobs."""
        ...

    def explain(self, explanations: Mapping[str, dict[str, object]]) -> None:
        """Writes what the scheduler says about waiting jobs."""
        ...

    def add_model_version(self, version: ModelVersionRecord) -> None:
        """Writes down a version of a model."""
        ...


class JobStore:
    """The database; an object has one user at a time, in any thread.

    Args:
        location: A file, or the URL of a PostgreSQL database.
    """

    def __init__(self, location: Path | str) -> None:
        self._db = open_database(location)
        try:
            self._migrate(str(location))
        except BaseException:
            self._db.close()
            raise

    def _migrate(self, location: str) -> None:
        """Brings the tables up to date; several processes may come here at once."""
        if self._version() == len(_MIGRATIONS):
            return
        with self._db.transaction():
            found = self._version()
            if found > len(_MIGRATIONS):
                raise MillpondError(
                    f"{without_password(location)} was written by a later version ({found}).",
                    fix="Upgrade Millpond, or use another database.",
                )
            for script in _MIGRATIONS[found:]:
                for statement in script.format_map(self._db.types).split(";\n"):
                    if statement.strip():
                        self._db.run(statement)
            self.set_fact("version", str(len(_MIGRATIONS)))

    def _version(self) -> int:
        """The version of the tables; 0 when there are none yet."""
        return int(self.fact("version") or 0) if self._db.has_table("facts") else 0

    def claim(self) -> None:
        """Keeps other controllers away from the database.

        Raises:
            StoreClaimedError: One is at work.
        """
        self._db.claim()

    def close(self) -> None:
        """Ends the connection."""
        self._db.close()

    def transaction(self) -> AbstractContextManager[None]:
        """All of it or nothing."""
        return self._db.transaction()

    def submit(self, states: Sequence[JobState]) -> None:
        """Adds jobs, all or none.

        Raises:
            JobExistsError: One of them is there already.
        """
        with self.transaction():
            for state in states:
                self.add(state)

    def add(self, state: JobState) -> None:
        """Adds one job inside a transaction."""
        spec = state.spec
        row = (state.uid, spec.namespace, spec.name, spec.framework, spec.tenant, state.phase.value,
               state.created_s, msgspec.json.encode(state))  # fmt: skip
        added = self._db.run(
            "INSERT INTO jobs (uid, namespace, name, framework, tenant, phase, created_s, state)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING RETURNING number",
            *row,
        )
        if not added:
            raise JobExistsError(
                f"There is a job '{spec.name}' in namespace '{spec.namespace}' already.",
                fix="Choose another name, or delete that job first.",
                param="name",
            )

    def save(self, states: Iterable[JobState]) -> None:
        """Writes states back, inside a transaction."""
        self._db.run_many(
            "UPDATE jobs SET state = ?, phase = ?, finished_s = ?, deleted_s = ? WHERE uid = ?",
            [(msgspec.json.encode(s), s.phase.value, s.finished_s, s.deleted_s, s.uid) for s in states],
        )

    def explain(self, explanations: Mapping[str, dict[str, object]]) -> None:
        """Writes what the scheduler says about jobs; an empty one clears."""
        rows = [(json.dumps(value) if value else None, uid) for uid, value in explanations.items()]
        self._db.run_many("UPDATE jobs SET explanation = ? WHERE uid = ?", rows)

    def load(self, after: int = 0) -> list[JobRecord]:
        """Jobs that are not deleted, with a number above `after`, oldest first."""
        query = "SELECT number, state, explanation FROM jobs WHERE deleted_s IS NULL AND number > ? ORDER BY number"
        return [_record(row) for row in self._db.run(query, after)]

    def find(self, name: str, namespace: str | None = None) -> list[JobRecord]:
        """Jobs by name or uid; the one that lives first, then deleted ones, newest first."""
        where, values = ("", ()) if namespace is None else (" AND namespace = ?", (namespace,))
        query = (
            f"SELECT number, state, explanation FROM jobs WHERE (name = ? OR uid = ?){where}"
            " ORDER BY deleted_s IS NOT NULL, number DESC"
        )
        return [_record(row) for row in self._db.run(query, name, name, *values)]

    def records(self, *, namespace: str | None = None, deleted: bool = False) -> list[JobRecord]:
        """Jobs, newest first; deleted ones only on request."""
        terms = ([] if deleted else ["deleted_s IS NULL"]) + ([] if namespace is None else ["namespace = ?"])
        where = f" WHERE {' AND '.join(terms)}" if terms else ""
        query = f"SELECT number, state, explanation FROM jobs{where} ORDER BY number DESC"
        return [_record(row) for row in self._db.run(query, *(() if namespace is None else (namespace,)))]

    def has_work(self) -> bool:
        """Whether a job has not ended, a cron is there, or a wish waits."""
        query = (
            "SELECT EXISTS (SELECT 1 FROM jobs WHERE deleted_s IS NULL AND finished_s IS NULL)"
            " OR EXISTS (SELECT 1 FROM commands)"
        )
        return bool(self._db.run(query)[0][0])

    def add_events(self, events: Iterable[tuple[str, EventRecord]]) -> None:
        """Adds events of jobs, inside a transaction."""
        rows = [(uid, event.at_s, event.kind, event.reason, event.message) for uid, event in events]
        self._db.run_many("INSERT INTO events (uid, at_s, kind, reason, message) VALUES (?, ?, ?, ?, ?)", rows)

    def events(self, uid: str) -> list[EventRecord]:
        """Events of a job, oldest first."""
        query = "SELECT at_s, kind, reason, message FROM events WHERE uid = ? ORDER BY number"
        return [EventRecord(*row) for row in self._db.run(query, uid)]

    def ask(self, uid: str, verb: str) -> None:
        """Leaves a wish for the controller: delete, suspend, resume."""
        self._db.run("INSERT INTO commands (uid, verb) VALUES (?, ?)", uid, verb)

    def wishes(self) -> list[tuple[int, str, str]]:
        """Wishes not yet granted: number, uid, verb."""
        found = self._db.run("SELECT number, uid, verb FROM commands ORDER BY number")
        return [(number, uid, verb) for number, uid, verb in found]

    def grant(self, numbers: Iterable[int]) -> None:
        """Forgets wishes, inside the transaction that saves what came of them."""
        self._db.run_many("DELETE FROM commands WHERE number = ?", [(number,) for number in numbers])

    def add_model_version(self, version: ModelVersionRecord) -> None:
        """Writes down a version of a model; the same one again is no news."""
        row = (version.name, version.model, version.path, version.uid, version.created_s, version.created_by)
        self._db.run("INSERT INTO model_versions VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING", *row)

    def model_versions(self) -> list[ModelVersionRecord]:
        """All versions, oldest first."""
        query = "SELECT name, model, path, uid, created_s, created_by FROM model_versions ORDER BY created_s, name"
        return [ModelVersionRecord(*row) for row in self._db.run(query)]

    def fact(self, name: str) -> str | None:
        """A small fact, such as the controller's nodes."""
        found = self._db.run("SELECT value FROM facts WHERE name = ?", name)
        return str(found[0][0]) if found else None

    def set_fact(self, name: str, value: str) -> None:
        """Writes a small fact."""
        self._db.run(
            "INSERT INTO facts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = excluded.value", name, value
        )


def _record(row: tuple[int, bytes, str | None]) -> JobRecord:
    number, state, explanation = row
    return JobRecord(number, msgspec.json.decode(state, type=JobState), json.loads(explanation) if explanation else {})

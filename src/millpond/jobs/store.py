"""Jobs on SQLite: what was submitted, how far it has come, its events, and what is left of deleted jobs.

One file, shared by the command line (submits, asks for deletion, reads) and the one controller (writes states). What
is committed is on the disk before a call returns. Knows nothing about processes and scheduling.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import msgspec

from millpond.api.job import JobExistsError
from millpond.base.errors import MillpondError
from millpond.jobs.state import JobState

_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS jobs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    uid TEXT NOT NULL UNIQUE,
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    framework TEXT NOT NULL,
    tenant TEXT NOT NULL,
    phase TEXT NOT NULL,
    created_s REAL NOT NULL,
    finished_s REAL,
    deleted_s REAL,
    state BLOB NOT NULL,
    explanation BLOB
);
CREATE UNIQUE INDEX IF NOT EXISTS jobs_by_name ON jobs (namespace, name) WHERE deleted_s IS NULL;
CREATE TABLE IF NOT EXISTS events (
    number INTEGER PRIMARY KEY AUTOINCREMENT, uid TEXT NOT NULL, at_s REAL NOT NULL, kind TEXT NOT NULL,
    reason TEXT NOT NULL, message TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS events_by_job ON events (uid);
CREATE TABLE IF NOT EXISTS commands (
    number INTEGER PRIMARY KEY AUTOINCREMENT, uid TEXT NOT NULL, verb TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS model_versions (
    name TEXT PRIMARY KEY, model TEXT NOT NULL, path TEXT NOT NULL, uid TEXT NOT NULL, created_s REAL NOT NULL,
    created_by TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS facts (name TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


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
    """The database; an object has one user at a time, in any thread."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._db = sqlite3.connect(path, timeout=30.0, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")
        if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'facts'").fetchone():
            self._db.executescript(_SCHEMA)  # only once, as it takes the lock for writing
            self._db.execute("INSERT OR IGNORE INTO facts VALUES ('version', ?)", (str(_VERSION),))
        found = self.fact("version") or str(_VERSION)
        if found != str(_VERSION):
            raise MillpondError(f"{path} was written by another version ({found}).", fix="Move it away or upgrade.")

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

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
        try:
            self._db.execute(
                "INSERT INTO jobs (uid, namespace, name, framework, tenant, phase, created_s, state)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
        except sqlite3.IntegrityError:
            raise JobExistsError(
                f"There is a job '{spec.name}' in namespace '{spec.namespace}' already.",
                fix="Choose another name, or delete that job first.",
                param="name",
            ) from None

    def save(self, states: Iterable[JobState]) -> None:
        """Writes states back, inside a transaction."""
        self._db.executemany(
            "UPDATE jobs SET state = ?, phase = ?, finished_s = ?, deleted_s = ? WHERE uid = ?",
            [(msgspec.json.encode(s), s.phase.value, s.finished_s, s.deleted_s, s.uid) for s in states],
        )

    def explain(self, explanations: Mapping[str, dict[str, object]]) -> None:
        """Writes what the scheduler says about jobs; an empty one clears."""
        rows = [(json.dumps(value) if value else None, uid) for uid, value in explanations.items()]
        self._db.executemany("UPDATE jobs SET explanation = ? WHERE uid = ?", rows)

    def load(self, after: int = 0) -> list[JobRecord]:
        """Jobs that are not deleted, with a number above `after`, oldest first."""
        query = "SELECT number, state, explanation FROM jobs WHERE deleted_s IS NULL AND number > ? ORDER BY number"
        return [_record(row) for row in self._db.execute(query, (after,))]

    def find(self, name: str, namespace: str | None = None) -> list[JobRecord]:
        """Jobs by name or uid; the one that lives first, then deleted ones, newest first."""
        query = (
            "SELECT number, state, explanation FROM jobs WHERE (name = ? OR uid = ?) AND (? IS NULL OR namespace = ?)"
            " ORDER BY deleted_s IS NOT NULL, number DESC"
        )
        return [_record(row) for row in self._db.execute(query, (name, name, namespace, namespace))]

    def records(self, *, namespace: str | None = None, deleted: bool = False) -> list[JobRecord]:
        """Jobs, newest first; deleted ones only on request."""
        query = (
            "SELECT number, state, explanation FROM jobs WHERE (? IS NULL OR namespace = ?)"
            " AND (? OR deleted_s IS NULL) ORDER BY number DESC"
        )
        return [_record(row) for row in self._db.execute(query, (namespace, namespace, deleted))]

    def has_work(self) -> bool:
        """Whether a job has not ended, a cron is there, or a wish waits."""
        query = (
            "SELECT EXISTS (SELECT 1 FROM jobs WHERE deleted_s IS NULL AND finished_s IS NULL)"
            " OR EXISTS (SELECT 1 FROM commands)"
        )
        return bool(self._db.execute(query).fetchone()[0])

    def add_events(self, events: Iterable[tuple[str, EventRecord]]) -> None:
        """Adds events of jobs, inside a transaction."""
        rows = [(uid, event.at_s, event.kind, event.reason, event.message) for uid, event in events]
        self._db.executemany("INSERT INTO events (uid, at_s, kind, reason, message) VALUES (?, ?, ?, ?, ?)", rows)

    def events(self, uid: str) -> list[EventRecord]:
        """Events of a job, oldest first."""
        query = "SELECT at_s, kind, reason, message FROM events WHERE uid = ? ORDER BY number"
        return [EventRecord(*row) for row in self._db.execute(query, (uid,))]

    def ask(self, uid: str, verb: str) -> None:
        """Leaves a wish for the controller: delete, suspend, resume."""
        self._db.execute("INSERT INTO commands (uid, verb) VALUES (?, ?)", (uid, verb))

    def wishes(self) -> list[tuple[int, str, str]]:
        """Wishes not yet granted: number, uid, verb."""
        return list(self._db.execute("SELECT number, uid, verb FROM commands ORDER BY number"))

    def grant(self, numbers: Iterable[int]) -> None:
        """Forgets wishes, inside the transaction that saves what came of them."""
        self._db.executemany("DELETE FROM commands WHERE number = ?", [(number,) for number in numbers])

    def add_model_version(self, version: ModelVersionRecord) -> None:
        """Writes down a version of a model; the same one again is no news."""
        row = (version.name, version.model, version.path, version.uid, version.created_s, version.created_by)
        self._db.execute("INSERT OR IGNORE INTO model_versions VALUES (?, ?, ?, ?, ?, ?)", row)

    def model_versions(self) -> list[ModelVersionRecord]:
        """All versions, oldest first."""
        query = "SELECT name, model, path, uid, created_s, created_by FROM model_versions ORDER BY created_s, name"
        return [ModelVersionRecord(*row) for row in self._db.execute(query)]

    def fact(self, name: str) -> str | None:
        """A small fact, such as the controller's nodes."""
        row = self._db.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return None if row is None else str(row[0])

    def set_fact(self, name: str, value: str) -> None:
        """Writes a small fact."""
        self._db.execute("INSERT OR REPLACE INTO facts VALUES (?, ?)", (name, value))


def _record(row: tuple[int, bytes, str | None]) -> JobRecord:
    number, state, explanation = row
    return JobRecord(number, msgspec.json.decode(state, type=JobState), json.loads(explanation) if explanation else {})

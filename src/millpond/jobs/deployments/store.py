"""Deployments in the jobs' database: the wish (written by the verbs) and the status (written by the keeper).

A table of its own in the same file, and reads of the jobs that replicas are. Knows nothing about processes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from millpond.api.deployment import DeploymentExistsError, DeploymentStatus
from millpond.jobs.deployments.wish import Wish
from millpond.jobs.state import JobState

_SCHEMA = """
CREATE TABLE IF NOT EXISTS deployments (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    uid TEXT NOT NULL UNIQUE,
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    generation INTEGER NOT NULL,
    deleted_s REAL,
    wish BLOB NOT NULL,
    status BLOB
);
CREATE UNIQUE INDEX IF NOT EXISTS deployments_by_name ON deployments (namespace, name) WHERE deleted_s IS NULL;
"""
_ASKED_AT_ONCE = 500
Row = tuple[Wish, DeploymentStatus | None]


class DeploymentStore:
    """The table; an object has one user at a time, in any thread. The jobs' own store makes the file."""

    def __init__(self, path: Path) -> None:
        self._db = sqlite3.connect(path, timeout=30.0, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA synchronous=FULL")
        if not self._db.execute("SELECT 1 FROM sqlite_master WHERE name = 'deployments'").fetchone():
            self._db.executescript(_SCHEMA)

    def close(self) -> None:
        """Closes the file."""
        self._db.close()

    def add(self, wishes: Sequence[Wish]) -> None:
        """Adds deployments, all or none.

        Raises:
            DeploymentExistsError: One of them is there already.
        """
        self._db.execute("BEGIN IMMEDIATE")
        try:
            for wish in wishes:
                row = (wish.uid, wish.spec.namespace, wish.spec.name, wish.generation, msgspec.json.encode(wish))
                self._db.execute(
                    "INSERT INTO deployments (uid, namespace, name, generation, wish) VALUES (?, ?, ?, ?, ?)", row
                )
        except sqlite3.IntegrityError:
            self._db.execute("ROLLBACK")
            raise DeploymentExistsError(
                f"There is a deployment '{wish.spec.name}' in namespace '{wish.spec.namespace}' already.",
                fix="Change it with `apply` or `update`, or choose another name.",
                param="name",
            ) from None
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def change(self, uid: str, edit: Callable[[Wish], Wish]) -> Wish:
        """Changes a wish; nobody changes it in between."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            found = self._db.execute("SELECT wish FROM deployments WHERE uid = ?", (uid,)).fetchone()
            wish = edit(msgspec.json.decode(found[0], type=Wish))
            row = (wish.generation, msgspec.json.encode(wish), uid)
            self._db.execute("UPDATE deployments SET generation = ?, wish = ? WHERE uid = ?", row)
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")
        return wish

    def wish(self, uid: str, newer_than: int = -1) -> Wish | None:
        """The wish, if there is one of a later generation."""
        query = "SELECT wish FROM deployments WHERE uid = ? AND generation > ? AND deleted_s IS NULL"
        found = self._db.execute(query, (uid, newer_than)).fetchone()
        return None if found is None else msgspec.json.decode(found[0], type=Wish)

    def has(self, uid: str) -> bool:
        """Whether the deployment is there and not deleted."""
        query = "SELECT 1 FROM deployments WHERE uid = ? AND deleted_s IS NULL"
        return self._db.execute(query, (uid,)).fetchone() is not None

    def find(self, name: str, namespace: str | None = None) -> list[Row]:
        """Deployments that are not deleted, by name or uid."""
        query = (
            "SELECT wish, status FROM deployments WHERE (name = ? OR uid = ?) AND (? IS NULL OR namespace = ?)"
            " AND deleted_s IS NULL ORDER BY number"
        )
        return [_row(row) for row in self._db.execute(query, (name, name, namespace, namespace))]

    def all(self, namespace: str | None = None) -> list[Row]:
        """Deployments that are not deleted, newest first."""
        query = (
            "SELECT wish, status FROM deployments WHERE (? IS NULL OR namespace = ?) AND deleted_s IS NULL"
            " ORDER BY number DESC"
        )
        return [_row(row) for row in self._db.execute(query, (namespace, namespace))]

    def say(self, status: DeploymentStatus) -> None:
        """Writes how a deployment goes."""
        row = (msgspec.json.encode(status), status.uid)
        self._db.execute("UPDATE deployments SET status = ? WHERE uid = ? AND deleted_s IS NULL", row)

    def status(self, uid: str) -> DeploymentStatus | None:
        """What the keeper said last."""
        found = self._db.execute("SELECT status FROM deployments WHERE uid = ?", (uid,)).fetchone()
        return None if found is None or found[0] is None else msgspec.json.decode(found[0], type=DeploymentStatus)

    def bury(self, uid: str, now_s: float) -> None:
        """Marks a deployment as deleted; its record stays."""
        self._db.execute("UPDATE deployments SET deleted_s = ? WHERE uid = ? AND deleted_s IS NULL", (now_s, uid))

    def servers(self) -> list[JobState]:
        """Jobs of all deployments, replicas and gateways, that are not deleted."""
        query = "SELECT state FROM jobs WHERE framework = 'serving' AND deleted_s IS NULL ORDER BY number"
        return [msgspec.json.decode(row[0], type=JobState) for row in self._db.execute(query)]

    def jobs(self, uids: Sequence[str]) -> dict[str, tuple[JobState, dict[str, object]]]:
        """Jobs by uid, and what the scheduler says about them."""
        found: dict[str, tuple[JobState, dict[str, object]]] = {}
        for first in range(0, len(uids), _ASKED_AT_ONCE):
            asked = uids[first : first + _ASKED_AT_ONCE]
            query = f"SELECT uid, state, explanation FROM jobs WHERE uid IN ({','.join('?' * len(asked))})"
            for uid, state, explanation in self._db.execute(query, tuple(asked)):
                why = msgspec.json.decode(explanation, type=dict[str, object]) if explanation else {}
                found[uid] = (msgspec.json.decode(state, type=JobState), why)
        return found


def _row(row: tuple[bytes, bytes | None]) -> Row:
    wish, status = row
    said = None if status is None else msgspec.json.decode(status, type=DeploymentStatus)
    return msgspec.json.decode(wish, type=Wish), said

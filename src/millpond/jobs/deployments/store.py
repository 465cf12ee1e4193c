"""Deployments in the jobs' database: the wish (written by the verbs) and the status (written by the keeper).

A table of its own beside the jobs', and reads of the jobs that replicas are. Knows nothing about processes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from millpond.api.deployment import DeploymentExistsError, DeploymentStatus
from millpond.jobs.deployments.wish import Wish
from millpond.jobs.state import JobState
from millpond.jobs.store_database import Row, open_database

_SCHEMA = """
CREATE TABLE IF NOT EXISTS deployments (
    number {serial},
    uid TEXT NOT NULL UNIQUE,
    namespace TEXT NOT NULL,
    name TEXT NOT NULL,
    generation BIGINT NOT NULL,
    deleted_s {real},
    wish {blob} NOT NULL,
    status {blob}
);
CREATE UNIQUE INDEX IF NOT EXISTS deployments_by_name ON deployments (namespace, name) WHERE deleted_s IS NULL
"""
_ASKED_AT_ONCE = 500
Found = tuple[Wish, DeploymentStatus | None]


class DeploymentStore:
    """The table; an object has one user at a time, in any thread. The jobs' own store makes their tables.

    Args:
        location: A file, or the URL of a PostgreSQL database.
    """

    def __init__(self, location: Path | str) -> None:
        self._db = open_database(location)
        if not self._db.has_table("deployments"):
            with self._db.transaction():
                for statement in _SCHEMA.format_map(self._db.types).split(";\n"):
                    self._db.run(statement)

    def close(self) -> None:
        """Ends the connection."""
        self._db.close()

    def change_mark(self) -> int | None:
        """Another number once somebody else wrote to the database; None: not known."""
        return self._db.change_mark()

    def add(self, wishes: Sequence[Wish]) -> None:
        """Adds deployments, all or none.

        Raises:
            DeploymentExistsError: One of them is there already.
        """
        with self._db.transaction():
            for wish in wishes:
                place = (wish.spec.namespace, wish.spec.name)
                query = "SELECT 1 FROM deployments WHERE namespace = ? AND name = ? AND deleted_s IS NULL"
                if self._db.run(query, *place):
                    raise DeploymentExistsError(
                        f"There is a deployment '{place[1]}' in namespace '{place[0]}' already.",
                        fix="Change it with `apply` or `update`, or choose another name.",
                        param="name",
                    )
                self._db.run(
                    "INSERT INTO deployments (uid, namespace, name, generation, wish) VALUES (?, ?, ?, ?, ?)",
                    wish.uid, *place, wish.generation, msgspec.json.encode(wish),
                )  # fmt: skip

    def change(self, uid: str, edit: Callable[[Wish], Wish]) -> Wish:
        """Changes a wish; nobody changes it in between."""
        with self._db.transaction():
            (row,) = self._db.run("SELECT wish FROM deployments WHERE uid = ?", uid)
            wish = edit(msgspec.json.decode(row[0], type=Wish))
            encoded = msgspec.json.encode(wish)
            self._db.run("UPDATE deployments SET generation = ?, wish = ? WHERE uid = ?", wish.generation, encoded, uid)
        return wish

    def wish(self, uid: str, newer_than: int = -1) -> Wish | None:
        """The wish, if there is one of a later generation."""
        query = "SELECT wish FROM deployments WHERE uid = ? AND generation > ? AND deleted_s IS NULL"
        found = self._db.run(query, uid, newer_than)
        return msgspec.json.decode(found[0][0], type=Wish) if found else None

    def has(self, uid: str) -> bool:
        """Whether the deployment is there and not deleted."""
        return bool(self._db.run("SELECT 1 FROM deployments WHERE uid = ? AND deleted_s IS NULL", uid))

    def find(self, name: str, namespace: str | None = None) -> list[Found]:
        """Deployments that are not deleted, by name or uid."""
        query = (
            "SELECT wish, status FROM deployments WHERE (name = ? OR uid = ?) AND deleted_s IS NULL ORDER BY number"
        )
        found = [_found(row) for row in self._db.run(query, name, name)]
        return [one for one in found if namespace in (None, one[0].spec.namespace)]

    def all(self, namespace: str | None = None) -> list[Found]:
        """Deployments that are not deleted, newest first."""
        query = "SELECT wish, status FROM deployments WHERE deleted_s IS NULL ORDER BY number DESC"
        found = [_found(row) for row in self._db.run(query)]
        return [one for one in found if namespace in (None, one[0].spec.namespace)]

    def say(self, status: DeploymentStatus) -> None:
        """Writes how a deployment goes."""
        encoded = msgspec.json.encode(status)
        self._db.run("UPDATE deployments SET status = ? WHERE uid = ? AND deleted_s IS NULL", encoded, status.uid)

    def status(self, uid: str) -> DeploymentStatus | None:
        """What the keeper said last."""
        found = self._db.run("SELECT status FROM deployments WHERE uid = ? AND status IS NOT NULL", uid)
        return msgspec.json.decode(found[0][0], type=DeploymentStatus) if found else None

    def bury(self, uid: str, now_s: float) -> None:
        """Marks a deployment as deleted; its record stays."""
        self._db.run("UPDATE deployments SET deleted_s = ? WHERE uid = ? AND deleted_s IS NULL", now_s, uid)

    def servers(self) -> list[JobState]:
        """Jobs of all deployments, replicas and gateways, that are not deleted."""
        query = "SELECT state FROM jobs WHERE framework = 'serving' AND deleted_s IS NULL ORDER BY number"
        return [msgspec.json.decode(row[0], type=JobState) for row in self._db.run(query)]

    def jobs(self, uids: Sequence[str]) -> dict[str, tuple[JobState, dict[str, object]]]:
        """Jobs by uid, and what the scheduler says about them."""
        found: dict[str, tuple[JobState, dict[str, object]]] = {}
        for first in range(0, len(uids), _ASKED_AT_ONCE):
            asked = uids[first : first + _ASKED_AT_ONCE]
            query = f"SELECT uid, state, explanation FROM jobs WHERE uid IN ({','.join('?' * len(asked))})"
            for uid, state, explanation in self._db.run(query, *asked):
                why = msgspec.json.decode(explanation, type=dict[str, object]) if explanation else {}
                found[uid] = (msgspec.json.decode(state, type=JobState), why)
        return found


def _found(row: Row) -> Found:
    wish, status = row
    said = None if status is None else msgspec.json.decode(status, type=DeploymentStatus)
    return msgspec.json.decode(wish, type=Wish), said

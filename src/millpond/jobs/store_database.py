"""What the store of jobs stands on: statements, transactions and a claim, on SQLite here and on PostgreSQL beside it.

Owns the seam between statements and a database, and its errors. Statements are written once, with `?` for values and
the names in `TYPES` where the databases differ. Knows nothing of jobs. Called by `jobs.store`.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from millpond.base.errors import MillpondError

Row = tuple[Any, ...]

_TIMEOUT_S = 30.0
_PASSWORD = re.compile(r"(://[^:/@]+):[^@]*@")


class StoreUnavailableError(MillpondError):
    """The database does not answer; what was not committed is not there."""

    code = "store_unavailable"


class StoreClaimedError(MillpondError):
    """Another controller works on the same database."""

    code = "store_claimed"


class Database(Protocol):
    """One connection; it has one user at a time, in any thread."""

    types: Mapping[str, str]  # `{serial}`, `{real}`, `{blob}` in statements that make tables

    def run(self, statement: str, *values: object) -> list[Row]:
        """Runs one statement and returns its rows."""
        ...

    def run_many(self, statement: str, rows: Iterable[Row]) -> None:
        """Runs one statement for each row of values."""
        ...

    def transaction(self) -> AbstractContextManager[None]:
        """All of it or nothing; writers of other processes wait."""
        ...

    def has_table(self, name: str) -> bool:
        """Whether a table is there."""
        ...

    def change_mark(self) -> int | None:
        """Another number once another connection wrote something; None: that cannot be told without asking."""
        ...

    def claim(self) -> None:
        """Keeps every other controller out until the connection ends. Raises `StoreClaimedError`."""
        ...

    def close(self) -> None:
        """Ends the connection."""
        ...


class SqliteDatabase:
    """A file on this machine. What is committed is on the disk before a call returns."""

    types: Mapping[str, str] = {"serial": "INTEGER PRIMARY KEY AUTOINCREMENT", "real": "REAL", "blob": "BLOB"}

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._db = sqlite3.connect(path, timeout=_TIMEOUT_S, isolation_level=None, check_same_thread=False)
        self._db.execute("PRAGMA journal_mode=WAL")
        self._db.execute("PRAGMA synchronous=FULL")

    def run(self, statement: str, *values: object) -> list[Row]:
        """Runs one statement."""
        return self._db.execute(statement, values).fetchall()

    def run_many(self, statement: str, rows: Iterable[Row]) -> None:
        """Runs one statement for each row."""
        self._db.executemany(statement, rows)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing."""
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:  # a full disk may have ended it
                self._db.execute("ROLLBACK")
            raise

    def has_table(self, name: str) -> bool:
        """Whether a table is there."""
        return bool(self.run("SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = ?", name))

    def change_mark(self) -> int | None:
        """SQLite counts what others commit; reading that waits for nobody."""
        return int(self._db.execute("PRAGMA data_version").fetchone()[0])

    def claim(self) -> None:
        """The lock of the jobs directory keeps other controllers out already."""

    def close(self) -> None:
        """Closes the file."""
        self._db.close()


def open_database(location: Path | str) -> Database:
    """Opens a file, or a PostgreSQL database by its URL.

    Raises:
        StoreUnavailableError: The server does not answer, or its driver is not installed.
    """
    if isinstance(location, Path):
        return SqliteDatabase(location)
    if not location.startswith(("postgresql://", "postgres://")):
        raise MillpondError(
            f"'{without_password(location)}' is no database for jobs.", fix="Give a postgresql:// URL, or none."
        )
    try:
        from millpond.jobs.store_postgres import PostgresDatabase
    except ModuleNotFoundError:
        raise StoreUnavailableError(
            "The driver for PostgreSQL is not installed.", fix="Install it: pip install 'millpond[postgres]'."
        ) from None
    return PostgresDatabase(location)


def without_password(url: str) -> str:
    """A URL as it may be shown and logged."""
    return _PASSWORD.sub(r"\1@", url).split("?")[0]

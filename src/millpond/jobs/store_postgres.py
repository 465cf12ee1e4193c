"""PostgreSQL below the store of jobs.

Owns the connection: a loop in a thread of its own runs the driver, so that callers may be plain code, also inside
another loop. Every wait has a deadline. A lost connection is one clear error; the next call connects again, unless a
controller had claimed the database: it must claim it again and read everything anew, because another one may have
worked in between. Imported only when a URL names PostgreSQL.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import Coroutine, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, TypeVar

import asyncpg

from millpond.jobs.store_database import Row, StoreClaimedError, StoreUnavailableError, without_password

_CONNECT_S = 10.0
_STATEMENT_S = 30.0
# Numbers of our two advisory locks: one for writers, so that the numbers of jobs become visible in their order, and
# one that a controller holds for as long as its connection lives.
_WRITERS, _CONTROLLER = 0x6D696C6C, 0x706F6E64
_LOST = (
    OSError,
    TimeoutError,
    asyncpg.PostgresConnectionError,
    asyncpg.OperatorInterventionError,
    asyncpg.TooManyConnectionsError,
    asyncpg.CannotConnectNowError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,  # the server's last words came while the next statement was being written
)
_REFUSED = (asyncpg.InvalidAuthorizationSpecificationError, asyncpg.InvalidCatalogNameError)
_T = TypeVar("_T")


class PostgresDatabase:
    """One connection to a server."""

    types: Mapping[str, str] = {
        "serial": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
        "real": "DOUBLE PRECISION",
        "blob": "BYTEA",
    }

    def __init__(self, url: str) -> None:
        self._url = url
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="postgres", daemon=True)
        self._thread.start()
        self._connection: asyncpg.Connection[Any] | None = None
        self._is_claimed = False
        self._is_inside = False  # a transaction
        try:
            self._wait(self._connected())
        except BaseException:
            self.close()
            raise

    def run(self, statement: str, *values: object) -> list[Row]:
        """Runs one statement."""
        return [tuple(row) for row in self._wait(self._run(_numbered(statement), values))]

    def run_many(self, statement: str, rows: Iterable[Row]) -> None:
        """Runs one statement for each row."""
        self._wait(self._run_many(_numbered(statement), list(rows)))

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it or nothing; one writer at a time, as with SQLite."""
        self.run("BEGIN")
        self._is_inside = True
        try:
            self.run("SELECT pg_advisory_xact_lock(?::bigint)", _WRITERS)
            yield
        except BaseException:
            with suppress(StoreUnavailableError):  # without a connection nothing is there to take back
                self.run("ROLLBACK")
            self._is_inside = False
            raise
        try:
            self.run("COMMIT")
        finally:
            self._is_inside = False

    def has_table(self, name: str) -> bool:
        """Whether a table is there."""
        return bool(self.run("SELECT 1 WHERE to_regclass(?::text) IS NOT NULL", name))

    def change_mark(self) -> int | None:
        """A server would have to be asked."""
        return None

    def claim(self) -> None:
        """Takes the lock that a controller holds; it is free again when the connection ends, however that happens."""
        self._is_claimed = False
        if not self.run("SELECT pg_try_advisory_lock(?::bigint)", _CONTROLLER)[0][0]:
            raise StoreClaimedError(
                f"Another controller works on {without_password(self._url)}.", fix="Use it, or stop it first."
            )
        self._is_claimed = True

    def close(self) -> None:
        """Ends the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(*_LOST):
                asyncio.run_coroutine_threadsafe(connection.close(), self._loop).result(_CONNECT_S)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_CONNECT_S)
        if not self._thread.is_alive():
            self._loop.close()

    def _wait(self, work: Coroutine[Any, Any, _T]) -> _T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result(_CONNECT_S + _STATEMENT_S)
        except _REFUSED as error:
            raise StoreUnavailableError(
                f"{without_password(self._url)} refuses us: {error}", fix="Check the user, the password and the name."
            ) from error
        except _LOST as error:
            future.cancel()
            self._drop()
            said = str(error) or type(error).__name__
            raise StoreUnavailableError(
                f"{without_password(self._url)} does not answer: {said}",
                fix="Start the server or check the URL; the next call connects again.",
            ) from error

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            self._loop.call_soon_threadsafe(connection.terminate)

    async def _connected(self) -> asyncpg.Connection[Any]:
        connection = self._connection
        if connection is not None and not connection.is_closed():
            return connection
        if self._is_inside or self._is_claimed:
            raise ConnectionResetError("the connection was lost")
        self._connection = await asyncpg.connect(self._url, timeout=_CONNECT_S, command_timeout=_STATEMENT_S)
        return self._connection

    async def _run(self, statement: str, values: tuple[object, ...]) -> list[asyncpg.Record]:
        connection = await self._connected()
        return await connection.fetch(statement, *values)

    async def _run_many(self, statement: str, rows: list[Row]) -> None:
        connection = await self._connected()
        await connection.executemany(statement, rows)


@lru_cache(maxsize=256)
def _numbered(statement: str) -> str:
    """A statement with `$1`, `$2`, ... in place of its `?`."""
    numbers = itertools.count(1)
    return "".join(f"${next(numbers)}" if sign == "?" else sign for sign in statement)

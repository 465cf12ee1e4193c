"""Servers for public clients, and processes in which those clients find their own libraries.

The clients come from `tools/clients.sh`. A script gets addresses as arguments and prints one JSON document.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from millpond.serve.kserve.settings import TritonSettings
from tests.support.fuzzing.rooms import FuzzRoom, fuzz_room
from tests.support.triton_server import GOLDEN, TritonServer

LOADED = ("simple", "simple_string", "simple_sequence", "repeat_int32")
TIMEOUT_S = 300


@pytest.fixture(scope="session")
def clients() -> Path:
    """The folder of the installed clients."""
    folder = Path(sys.prefix) / "clients"
    if not folder.is_dir():
        pytest.fail(f"{folder} is not there: run tools/clients.sh")
    return folder


@pytest.fixture(scope="session")
def run_client(clients: Path) -> Callable[..., Any]:
    """Runs a script with a client's libraries before those of the tests, and returns what it printed."""

    def run(client: str, script: str, *arguments: str) -> Any:
        environment = {**os.environ, "PYTHONPATH": str(clients / client)}
        done = subprocess.run(
            [sys.executable, "-c", script, *arguments],
            capture_output=True,
            text=True,
            env=environment,
            timeout=TIMEOUT_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-4000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture(scope="module")
def triton() -> Iterator[TritonServer]:
    server = TritonServer(GOLDEN / "models", LOADED)
    yield server
    server.close()


@pytest.fixture(scope="module")
def strict_triton() -> Iterator[TritonServer]:
    server = TritonServer(GOLDEN / "models", LOADED, TritonSettings(is_strict=True))
    yield server
    server.close()


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FuzzRoom]:
    """A language model and servables, on every protocol's port."""
    with fuzz_room(tmp_path_factory.mktemp("room"), "compatible") as room:
        yield room

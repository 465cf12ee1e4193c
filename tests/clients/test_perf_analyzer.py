"""Triton's load generator, unchanged: it reads metadata, configuration and statistics, and measures over every way."""

from __future__ import annotations

import csv
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.triton_server import TritonServer

pytestmark = pytest.mark.clients

TIMEOUT_S = 240
# Few requests a window, and a machine may be as unsteady as it likes: nothing is measured here.
SHORT = ("--measurement-mode", "count_windows", "--measurement-request-count", "40", "-s", "999999", "-r", "3")


def analyze(clients: Path, table: Path, *flags: str) -> list[dict[str, str]]:
    """Runs it and returns the rows of its table."""
    folder = clients / "perf_analyzer"
    done = subprocess.run(
        [folder / "perf_analyzer", *flags, *SHORT, "-f", table],
        capture_output=True,
        text=True,
        env={**os.environ, "LD_LIBRARY_PATH": str(folder)},
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


WAYS = {
    "http": ("-i", "http", "-m", "simple", "-b", "4", "--concurrency-range", "1:2"),
    "http in shared memory": ("-i", "http", "-m", "simple", "--shared-memory", "system"),
    "grpc": ("-i", "grpc", "-m", "simple", "-b", "4", "--concurrency-range", "1:2"),
    "grpc in shared memory": ("-i", "grpc", "-m", "simple", "--shared-memory", "system"),
    "sequences": ("-i", "http", "-m", "simple_sequence", "--concurrency-range", "2"),
    "sequences in a stream": ("-i", "grpc", "-m", "simple_sequence", "--streaming", "--concurrency-range", "2"),
    "a rate": ("-i", "http", "-m", "simple", "--request-rate-range", "50"),
}


@pytest.mark.parametrize("way", WAYS)
def test_it_measures(triton: TritonServer, clients: Path, tmp_path: Path, way: str) -> None:
    flags = WAYS[way]
    url = triton.http if "http" in flags else triton.grpc
    rows = analyze(clients, tmp_path / "rows.csv", *flags, "-u", url)
    assert len(rows) == (2 if "1:2" in flags else 1)
    for row in rows:
        assert float(row["Inferences/Second"]) > 0
        assert float(row["Server Compute Infer"]) > 0  # from the difference of our statistics
        assert float(row["Client Recv"]) >= 0

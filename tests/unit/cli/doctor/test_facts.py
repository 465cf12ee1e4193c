from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from millpond.cli.doctor import bandwidth
from millpond.cli.doctor.facts import collect, find_compiler
from millpond.cli.main import main


def test_facts_of_this_machine_are_plausible() -> None:
    facts = collect()
    assert facts.machine.memory_total > 1 << 30
    assert 1 <= facts.machine.usable_cores <= facts.machine.logical_cpus
    assert facts.python == sys.version.split()[0]
    assert facts.versions["numpy"] == np.__version__


def test_a_machine_that_tells_nothing_is_still_described(tmp_path: Path) -> None:
    facts = collect(tmp_path)
    assert (facts.governor, facts.huge_pages, facts.busy_cores) == (None, None, 0.0)


def test_the_chosen_word_of_the_kernel_is_read(tmp_path: Path) -> None:
    file = tmp_path / "sys/kernel/mm/transparent_hugepage/enabled"
    file.parent.mkdir(parents=True)
    file.write_text("always [madvise] never\n")
    assert collect(tmp_path).huge_pages == "madvise"


def test_no_compiler_on_the_path_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_compiler() is None


def test_a_compiler_says_what_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\necho 'g++ 99.1'\necho more\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_compiler() == "g++ 99.1"


def test_numpy_reads_where_there_are_no_native_ops(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bandwidth, "_native_reader", lambda: None)
    monkeypatch.setattr(bandwidth, "_SHORTEST_S", 0.0001)
    measured = bandwidth.measure_read(2, 1 << 20)
    assert (measured.reader, measured.threads, measured.buffer_bytes) == ("numpy", 2, 1 << 20)
    assert min(measured.one_thread, measured.all_threads) > 1e6


def test_json_is_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--json", "--quick"])
    document = json.loads(capsys.readouterr().out)
    assert document["bandwidth_bytes_per_s"] is None
    assert {"machine", "versions", "findings"} <= document.keys()

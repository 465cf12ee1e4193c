"""`millpond models packed` and `prune`: what is kept for the next start, what is damaged, and what is removed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from millpond.cli.main import main
from millpond.inference.weights.packed_cache import PackedCache, packed_directory
from tests.support.packed_parameters import PretendedProgram, make_key


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two files, the first used longer ago."""
    monkeypatch.setenv("MILLPOND_CACHE", str(tmp_path))
    cache, program = PackedCache(packed_directory(), 1 << 30), PretendedProgram()
    paths = []
    for age, source in enumerate(("one", "two")):
        key = make_key(source)
        file = cache.open_or_pack(key, program.size_bytes, program.pack, lambda stage, fraction: None)
        assert file is not None
        file.close()
        paths.append(file.path)
        os.utime(file.path.with_suffix(".verified.json"), (1000 + age, 1000 + age))
    return paths


def listed(capsys: pytest.CaptureFixture[str], *flags: str) -> tuple[int, list[dict[str, object]]]:
    status = main(["models", "packed", "--json", *flags])
    return status, json.loads(capsys.readouterr().out)


def test_packed_lists_what_is_kept(kept: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    status, rows = listed(capsys)
    assert status == 0
    assert [row["path"] for row in rows] == [str(kept[1]), str(kept[0])]
    assert main(["models", "packed"]) == 0
    shown = capsys.readouterr().out
    assert "/models/some" in shown
    assert "2 files" in shown


def test_verify_finds_the_damaged_one(kept: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    with kept[0].open("r+b") as file:
        file.seek(9000)
        file.write(b"damage")
    status, rows = listed(capsys, "--verify")
    assert status == 1
    assert [bool(row["damage"]) for row in rows] == [False, True]


def test_prune_leaves_what_was_used_last(kept: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "prune", "--keep", str(kept[1].stat().st_size)]) == 0
    assert [path.exists() for path in kept] == [False, True]
    assert main(["models", "prune"]) == 0
    assert os.listdir(packed_directory()) == []
    assert capsys.readouterr().out.splitlines()[1].startswith("Removed 1 files")

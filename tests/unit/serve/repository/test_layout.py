"""Names, versions and paths of a repository's folders."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from millpond.serve.repository.layout import (
    check_relative,
    choose_versions,
    find_models,
    find_versions,
    fingerprint,
    is_name,
    read_inside,
    versions_of_files,
)
from millpond.serve.servables.config import VersionPolicy
from millpond.serve.servables.errors import ServableError


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "/etc", "a\\b", "a\0", "x" * 256])
def test_a_name_that_leads_elsewhere_is_none(name: str) -> None:
    assert not is_name(name)


@pytest.mark.parametrize("path", ["", "..", "../x", "1/../../x", "/etc/passwd", "1\\..\\x", "a\0b"])
def test_a_path_that_leads_out_of_the_folder_is_refused(path: str, tmp_path: Path) -> None:
    with pytest.raises(ServableError, match="leads out"):
        check_relative(path)
    with pytest.raises(ServableError, match="leads out"):
        read_inside(tmp_path, path)


def test_only_numbered_folders_are_versions(tmp_path: Path) -> None:
    for name in ("1", "10", "9", "0", "01", "-1", "x", "1a", "²"):
        (tmp_path / name).mkdir()
    (tmp_path / "3").write_text("a file")
    assert find_versions(tmp_path) == [1, 9, 10]
    assert versions_of_files(["1/model.py", "12/a/b", "x/model.py", "config"]) == [1, 12]


@pytest.mark.parametrize(
    ("policy", "chosen"),
    [
        (VersionPolicy(), [10]),
        (VersionPolicy(latest=2), [9, 10]),
        (VersionPolicy(latest=0), [1, 9, 10]),
        (VersionPolicy(latest=0, specific=(9, 4)), [9]),
    ],
)
def test_a_policy_chooses_versions(policy: VersionPolicy, chosen: list[int]) -> None:
    assert choose_versions(policy, [10, 1, 9]) == chosen


def test_models_of_all_repositories_are_found_and_hidden_folders_are_not(tmp_path: Path) -> None:
    for path in ("one/a", "one/.git", "two/a", "two/b"):
        (tmp_path / path).mkdir(parents=True)
    (tmp_path / "one" / "file").write_text("")
    found = find_models([tmp_path / "one", tmp_path / "two"])
    assert {name: len(folders) for name, folders in found.items()} == {"a": 2, "b": 1}


def test_a_changed_file_changes_the_fingerprint_and_the_interpreters_cache_does_not(tmp_path: Path) -> None:
    model = tmp_path / "1" / "model.py"
    model.parent.mkdir()
    model.write_text("a")
    before, outside = fingerprint(tmp_path), fingerprint(tmp_path, skip_versions=True)
    (tmp_path / "1" / "__pycache__").mkdir()
    (tmp_path / "1" / "__pycache__" / "model.pyc").write_text("")
    assert fingerprint(tmp_path) == before
    os.utime(model, ns=(1, 1))
    assert fingerprint(tmp_path) != before
    assert fingerprint(tmp_path, skip_versions=True) == outside == ()

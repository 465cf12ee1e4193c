"""Packed weights on the disk: the bytes of the first start come back, and nothing that is damaged is believed."""

from __future__ import annotations

import fcntl
import logging
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from millpond.inference.ops.parameters import ParameterStore
from millpond.inference.weights.packed_cache import PackedCache, PackedKey, source_digest
from millpond.inference.weights.packed_file import PackedFile
from tests.support.packed_parameters import SIZES, PretendedProgram, make_key

MANY = 1 << 40


def quiet(stage: str, fraction: float) -> None:
    """Hears nothing."""


def use(cache: PackedCache, program: PretendedProgram, key: PackedKey | None = None) -> PackedFile:
    """Opens or packs, and checks every byte."""
    file = cache.open_or_pack(key or make_key(), program.size_bytes, program.pack, quiet)
    assert file is not None
    filled = program.num_filled
    assert program.is_in(file)
    assert program.num_filled == filled, "the store had a parameter packed again"
    return file


def packs(cache: PackedCache, program: PretendedProgram, key: PackedKey | None = None) -> int:
    """How many parameters a start packs."""
    before = program.num_filled
    use(cache, program, key).close()
    return program.num_filled - before


@pytest.fixture
def cache(tmp_path: Path) -> PackedCache:
    return PackedCache(tmp_path / "packed", MANY)


@pytest.fixture
def packed(cache: PackedCache) -> Path:
    """A file that was written."""
    use(cache, PretendedProgram()).close()
    return cache.path(make_key().text)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_the_second_start_packs_nothing(cache: PackedCache) -> None:
    program = PretendedProgram()
    assert packs(cache, program) == len(SIZES)
    assert packs(cache, program) == 0


def test_a_large_file_comes_back_byte_for_byte(cache: PackedCache) -> None:
    program = PretendedProgram(sizes=(9 << 20, 64, (17 << 20) + 8, 1 << 20))
    assert packs(cache, program) == 4
    assert packs(cache, program) == 0


def test_nothing_but_the_file_and_its_stamp_is_left(packed: Path) -> None:
    assert names(packed.parent) == sorted([packed.name, packed.with_suffix(".verified.json").name])
    assert packed.stat().st_mode & 0o077 == 0


def test_other_weights_and_other_forms_have_files_of_their_own(cache: PackedCache) -> None:
    first, second = PretendedProgram(1), PretendedProgram(2)
    assert packs(cache, first, make_key("one")) == len(SIZES)
    assert packs(cache, second, make_key("two")) == len(SIZES)
    assert packs(cache, second, make_key("one", dtype="w8a8")) == len(SIZES)
    assert packs(cache, first, make_key("one")) == 0


def flip(path: Path, position: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("position", [0, 9, 40, 4096, 4096 + 64 + 4096, -40, -1])
def test_a_flipped_bit_is_found_and_the_file_written_again(cache: PackedCache, packed: Path, position: int) -> None:
    flip(packed, position)
    assert packs(cache, PretendedProgram()) == len(SIZES)
    assert packs(cache, PretendedProgram()) == 0


@pytest.mark.parametrize("keep", [0, 7, 4095, 4096, 50_000, -1])
def test_a_truncated_file_is_found_and_written_again(cache: PackedCache, packed: Path, keep: int) -> None:
    packed.write_bytes(packed.read_bytes()[:keep])
    assert packs(cache, PretendedProgram()) == len(SIZES)


def test_bytes_behind_the_end_are_found(cache: PackedCache, packed: Path) -> None:
    with packed.open("ab") as file:
        file.write(b"more")
    assert packs(cache, PretendedProgram()) == len(SIZES)


def test_a_file_in_another_ones_place_is_found(cache: PackedCache, packed: Path) -> None:
    other = cache.path(make_key("other").text)
    os.rename(packed, other)
    assert packs(cache, PretendedProgram(7), make_key("other")) == len(SIZES)


def test_a_link_is_not_followed(cache: PackedCache, packed: Path, tmp_path: Path) -> None:
    packed.rename(tmp_path / "elsewhere")
    packed.symlink_to(tmp_path / "elsewhere")
    assert cache.open_or_pack(make_key(), 1, PretendedProgram().pack, quiet) is None


def test_a_file_without_a_stamp_is_read_whole_and_used(cache: PackedCache, packed: Path) -> None:
    packed.with_suffix(".verified.json").unlink()
    assert packs(cache, PretendedProgram()) == 0
    assert packed.with_suffix(".verified.json").exists()


def test_a_program_that_asks_for_something_else_is_told(cache: PackedCache, packed: Path) -> None:
    file = cache.open_or_pack(make_key(), 1, PretendedProgram().pack, quiet)
    assert file is not None
    with pytest.raises(Exception, match="'parameter 0' where 'another' is asked for"):
        file.place("another", SIZES[0], lambda address: None)
    cache.reject(file, "a test")
    assert not packed.exists()


def test_changing_a_model_changes_its_digest_even_if_its_time_is_set_back(tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    model.write_bytes(bytes(1000))
    facts, before = model.stat(), source_digest("content", [str(model)])
    assert source_digest("content", [str(model)]) == before
    with model.open("r+b") as file:
        file.seek(500)
        file.write(b"x")
    os.utime(model, ns=(facts.st_atime_ns, facts.st_mtime_ns))
    assert source_digest("content", [str(model)]) != before


# Processes: forked, for a child that only packs needs nothing that a fork breaks.


def in_child(work: Callable[[], bool]) -> int:
    """Runs `work` in a child; its status is 0 when it returned True."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            status = 0 if work() else 2
        finally:
            os._exit(status)
    return child


def status_of(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


class Signposts:
    """A child says where it is and waits there for ever."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()

    def stop_here(self) -> None:
        os.write(self._write, b"x")
        time.sleep(60)

    def wait(self) -> None:
        assert os.read(self._read, 1) == b"x"


@pytest.fixture
def signposts() -> Iterator[Signposts]:
    posts = Signposts()
    yield posts
    os.close(posts._read)
    os.close(posts._write)


@pytest.mark.parametrize("where", ["half of the parameters", "the rename", "the stamp"])
def test_a_start_that_is_killed_leaves_nothing_wrong(
    cache: PackedCache, tmp_path: Path, signposts: Signposts, where: str
) -> None:
    program = PretendedProgram(sizes=(20 << 20, 1000, 3 << 20))

    def pack_half(store: ParameterStore) -> None:
        for label, data in program.parameters[:2]:
            store.place(label, len(data), lambda address: None)
        signposts.stop_here()

    def work() -> bool:
        if where == "the rename":
            os.rename = lambda *paths: signposts.stop_here()  # type: ignore[assignment]
        elif where == "the stamp":
            os.replace = lambda *paths: signposts.stop_here()  # type: ignore[assignment]
        pack = pack_half if where == "half of the parameters" else program.pack
        return cache.open_or_pack(make_key(), program.size_bytes, pack, quiet) is not None

    child = in_child(work)
    signposts.wait()
    os.kill(child, signal.SIGKILL)
    assert status_of(child) == -signal.SIGKILL
    use(cache, program).close()
    use(cache, PretendedProgram(), make_key("another")).close()  # a later writer clears what was left
    assert all(not name.endswith(".new") for name in names(tmp_path / "packed"))


def test_of_two_starts_at_once_one_packs_and_both_are_right(cache: PackedCache, tmp_path: Path) -> None:
    program = PretendedProgram(sizes=(5 << 20, 1000))
    log = tmp_path / "log"

    def pack(store: ParameterStore) -> None:
        with log.open("a") as file:
            file.write("packed\n")
        time.sleep(0.3)
        program.pack(store)

    def work() -> bool:
        file = cache.open_or_pack(make_key(), program.size_bytes, pack, quiet)
        return file is not None and program.is_in(file)

    children = [in_child(work) for _ in range(3)]
    assert [status_of(child) for child in children] == [0, 0, 0]
    assert log.read_text() == "packed\n"


def test_waiting_for_another_start_ends(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = PackedCache(tmp_path, MANY, wait_s=0.2)
    heard = []
    with (tmp_path / f"{make_key().text}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        program = PretendedProgram()
        found = cache.open_or_pack(make_key(), 1, program.pack, lambda stage, fraction: heard.append(stage))
    assert found is None
    assert "wait for another start that packs these weights" in heard
    assert "Another process has been packing" in caplog.text


def test_a_disk_that_takes_no_more_is_said_once_and_nothing_stays(
    cache: PackedCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program = PretendedProgram(sizes=(40 << 20,))

    def work() -> bool:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))  # writes past it fail, as on a full disk
        found = cache.open_or_pack(make_key(), program.size_bytes, program.pack, quiet)
        said = [record for record in caplog.records if record.levelno == logging.WARNING]
        return found is None and len(said) == 1 and "cannot be kept" in said[0].getMessage()

    assert status_of(in_child(work)) == 0
    assert names(tmp_path / "packed") == []


def test_a_disk_with_too_little_room_is_not_filled(
    cache: PackedCache, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    program = PretendedProgram()
    assert cache.open_or_pack(make_key(), 1 << 39, program.pack, quiet) is None
    assert "to spare are not free" in caplog.text
    assert program.num_filled == 0


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("no directory")
    cache = PackedCache(tmp_path / "file" / "packed", MANY)
    assert cache.open_or_pack(make_key(), 1, PretendedProgram().pack, quiet) is None
    assert "Each start packs them anew." in caplog.text
    assert not cache.has(make_key())


def test_nothing_is_kept_where_nothing_is_allowed(tmp_path: Path) -> None:
    cache = PackedCache(tmp_path / "packed", 0)
    assert cache.open_or_pack(make_key(), 1, PretendedProgram().pack, quiet) is None
    assert not (tmp_path / "packed").exists()


def test_what_was_used_longest_ago_makes_room(tmp_path: Path) -> None:
    program = PretendedProgram()
    cache = PackedCache(tmp_path, 300_000)  # three of about 90,000
    for age, source in enumerate(("a", "b", "c")):
        use(cache, program, make_key(source)).close()
        stamp = cache.path(make_key(source).text).with_suffix(".verified.json")
        os.utime(stamp, (1000 + age, 1000 + age))
    use(cache, program, make_key("a")).close()  # now b is the oldest
    use(cache, program, make_key("d")).close()
    kept = [entry.key for entry in cache.entries()]
    assert sorted(kept) == sorted(make_key(source).text for source in "acd")


def test_what_an_engine_runs_on_stays(tmp_path: Path) -> None:
    program = PretendedProgram()
    cache = PackedCache(tmp_path, program.size_bytes + 20_000)
    running = use(cache, program, make_key("a"))
    use(cache, program, make_key("b")).close()
    assert {entry.key for entry in cache.entries()} == {make_key("a").text, make_key("b").text}
    (entry,) = (entry for entry in cache.entries() if entry.key == make_key("a").text)
    assert not cache.remove(entry)
    running.close()
    assert cache.remove(entry)


def test_a_new_form_takes_the_place_of_the_old_one(cache: PackedCache) -> None:
    program = PretendedProgram()
    use(cache, program, make_key("model", "old")).close()
    use(cache, program, make_key("model", "old", "w8a8")).close()
    use(cache, program, make_key("model", "new")).close()
    kept = {entry.key for entry in cache.entries()}
    assert kept == {make_key("model", "old", "w8a8").text, make_key("model", "new").text}


def test_entries_say_what_they_are(cache: PackedCache, packed: Path) -> None:
    (entry,) = cache.entries()
    assert (entry.model, entry.dtype, entry.path) == ("/models/some", "int8", str(packed))
    assert entry.size_bytes == packed.stat().st_size
    assert cache.check(entry, quiet) == ""
    flip(packed, 5000)
    assert "not those that were written" in cache.check(entry, quiet)
    flip(packed, 20)
    assert cache.entries()[0].model == "damaged"

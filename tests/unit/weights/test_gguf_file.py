"""The GGUF parser: what it reads against the `gguf` package, and what it refuses, before it takes memory."""

from __future__ import annotations

import struct
from contextlib import suppress
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millpond.base.errors import CheckpointError
from millpond.inference.weights.gguf_file import GgufFile
from tests.support.gguf_files import write_gguf

METADATA = {
    "general.name": "Tiny",
    "test.flag": True,
    "test.count": 7,
    "test.ratio": 0.5,
    "test.words": ["a", "", "größer", "日本"],
    "test.numbers": [1, -2, 3],
}
TENSORS = {"a.weight": np.arange(12, dtype=np.float32).reshape(3, 4), "b.bias": np.ones(5, np.float16)}
HEAD = b"GGUF" + struct.pack("<I", 3)


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def tensor_row(name: str, shape: tuple[int, ...], code: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, code, offset)


def write_raw(path: Path, *rows: bytes, entries: tuple[bytes, ...] = (), data: bytes = b"") -> str:
    table = HEAD + struct.pack("<QQ", len(rows), len(entries)) + b"".join(entries) + b"".join(rows)
    path.write_bytes(table + bytes(-len(table) % 32) + data)
    return str(path)


@pytest.fixture(scope="module")
def good_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "good.gguf", "llama", TENSORS, METADATA).read_bytes()


@pytest.fixture
def good(tmp_path: Path, good_bytes: bytes) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(good_bytes)
    return path


def test_metadata_equals_what_the_reference_reads(good: Path) -> None:
    ours = GgufFile(str(good)).metadata
    theirs = {name: field.contents() for name, field in gguf.GGUFReader(good).fields.items() if "GGUF." not in name}
    assert {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in ours.items()} == theirs


def test_tensor_bytes_equal_what_the_reference_reads(good: Path) -> None:
    file = GgufFile(str(good))
    for tensor in gguf.GGUFReader(good).tensors:
        ours = file.tensors[tensor.name]
        assert ours.shape == tuple(reversed(tensor.shape.tolist()))
        assert file.mapped.bytes_at(ours.offset, ours.size_bytes) == tensor.data.tobytes()


def test_version_2_is_read_like_version_3(good: Path) -> None:
    data = bytearray(good.read_bytes())
    data[4:8] = struct.pack("<I", 2)
    good.write_bytes(data)
    assert GgufFile(str(good)).architecture == "llama"


@pytest.mark.parametrize(
    ("version", "reason"), [(struct.pack("<I", 1), "version 1"), (struct.pack(">I", 3), "big-endian")]
)
def test_other_versions_are_named(good: Path, version: bytes, reason: str) -> None:
    data = bytearray(good.read_bytes())
    data[4:8] = version
    good.write_bytes(data)
    with pytest.raises(CheckpointError, match=rf"model\.gguf: it .*{reason}"):
        GgufFile(str(good))


def test_a_file_of_another_format_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(CheckpointError, match=r"model\.gguf: it does not start with GGUF"):
        GgufFile(str(path))


def test_every_truncation_is_refused(tmp_path: Path, good_bytes: bytes) -> None:
    path = tmp_path / "model.gguf"
    for size in [*range(0, len(good_bytes) - 64, 5), *range(len(good_bytes) - 64, len(good_bytes) - 32)]:
        path.write_bytes(good_bytes[:size])
        with pytest.raises(CheckpointError, match=r"model\.gguf"):
            GgufFile(str(path))


@settings(max_examples=400)
@given(position=st.integers(0, 420), value=st.integers(0, 255))
def test_a_changed_byte_is_read_or_refused_but_never_crashes(
    tmp_path_factory: pytest.TempPathFactory, good_bytes: bytes, position: int, value: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "changed.gguf"
    data = bytearray(good_bytes)
    data[position % len(data)] = value
    path.write_bytes(data)
    with suppress(CheckpointError):
        GgufFile(str(path)).close()


HOSTILE_ENTRIES = {
    "string length": text("k") + struct.pack("<IQ", 8, 1 << 62),
    "array of strings": text("k") + struct.pack("<IIQ", 9, 8, 1 << 60),
    "array of numbers": text("k") + struct.pack("<IIQ", 9, 4, 1 << 61),
    "array of arrays": text("k") + struct.pack("<IIQ", 9, 9, 1 << 40),
    "nested arrays": text("k") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 50,
    "unknown type": text("k") + struct.pack("<IQ", 77, 0),
    "key length": struct.pack("<Q", 1 << 63),
}


@pytest.mark.parametrize("entry", HOSTILE_ENTRIES.values(), ids=HOSTILE_ENTRIES.keys())
def test_a_claim_larger_than_the_file_is_refused(tmp_path: Path, entry: bytes) -> None:
    with pytest.raises(CheckpointError, match=r"model\.gguf: (truncated|its metadata)"):
        GgufFile(write_raw(tmp_path / "model.gguf", entries=(entry,)))


@pytest.mark.parametrize("counts", [(1 << 63, 0), (0, 1 << 63), (1 << 32, 1 << 32)])
def test_counts_larger_than_the_file_are_refused(tmp_path: Path, counts: tuple[int, int]) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(HEAD + struct.pack("<QQ", *counts) + bytes(64))
    with pytest.raises(CheckpointError, match="which it cannot hold"):
        GgufFile(str(path))


BAD_TENSORS = {
    "the type Q2_K is not supported": tensor_row("w", (256,), 10, 0),
    "the type IQ4_XS is not supported": tensor_row("w", (256,), 23, 0),
    "the type number 999 is not supported": tensor_row("w", (256,), 999, 0),
    "rows of 100 numbers are no whole blocks of Q4_1": tensor_row("w", (100, 2), 3, 0),
    "it has 9 dimensions": tensor_row("w", (1,) * 9, 0, 0),
    "it has 0 dimensions": tensor_row("w", (), 0, 0),
    "its offset 4 is not aligned": tensor_row("w", (4,), 0, 4),
    "truncated: it ends at byte": tensor_row("w", (1 << 40, 1 << 40), 0, 0),
}


@pytest.mark.parametrize(("reason", "row"), BAD_TENSORS.items(), ids=BAD_TENSORS.keys())
def test_a_bad_tensor_is_named_with_the_reason(tmp_path: Path, reason: str, row: bytes) -> None:
    with pytest.raises(CheckpointError, match=rf"model\.gguf: tensor 'w': {reason}"):
        GgufFile(write_raw(tmp_path / "model.gguf", row, data=bytes(128)))


def test_overlapping_tensors_are_named(tmp_path: Path) -> None:
    rows = (tensor_row("first", (16,), 0, 0), tensor_row("second", (16,), 0, 32))
    with pytest.raises(CheckpointError, match="tensor 'second': overlaps tensor 'first'"):
        GgufFile(write_raw(tmp_path / "model.gguf", *rows, data=bytes(256)))


def test_a_tensor_that_stands_twice_is_named(tmp_path: Path) -> None:
    rows = (tensor_row("w", (8,), 0, 0), tensor_row("w", (8,), 0, 32))
    with pytest.raises(CheckpointError, match="tensor 'w': stands in the table twice"):
        GgufFile(write_raw(tmp_path / "model.gguf", *rows, data=bytes(256)))


def test_a_key_that_stands_twice_is_named(tmp_path: Path) -> None:
    entry = text("k") + struct.pack("<IB", 0, 1)
    with pytest.raises(CheckpointError, match="the key 'k' twice"):
        GgufFile(write_raw(tmp_path / "model.gguf", entries=(entry, entry)))


@pytest.mark.parametrize("alignment", [0, 7, 12, 1 << 30])
def test_a_forged_alignment_is_refused(tmp_path: Path, alignment: int) -> None:
    entry = text("general.alignment") + struct.pack("<II", 4, alignment)
    with pytest.raises(CheckpointError, match=r"its alignment .* is not a multiple of 8"):
        GgufFile(write_raw(tmp_path / "model.gguf", entries=(entry,)))


def test_a_hostile_name_is_shown_on_one_bounded_line(tmp_path: Path) -> None:
    row = tensor_row("evil\n\x1b[31m" + "x" * 5000, (256,), 10, 0)
    with pytest.raises(CheckpointError) as caught:
        GgufFile(write_raw(tmp_path / "model.gguf", row, data=bytes(128)))
    assert "\n" not in str(caught.value)
    assert "\x1b" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_a_missing_number_is_named(good: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no number llama\.block_count"):
        GgufFile(str(good)).count("llama.block_count")

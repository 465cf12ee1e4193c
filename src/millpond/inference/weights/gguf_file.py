"""A `.gguf` file: its metadata and its table of tensors, parsed with bounds from the mapped bytes.

Own parser, struct and numpy alone: the gateway reads a tokenizer from here without torch, and nothing a hostile file
claims (counts, lengths, shapes, offsets) is believed before it was compared with the size of the file. Versions 2 and
3, little-endian. Knows nothing about architectures; gguf_checkpoint.py and text/gguf_tokenizer.py interpret it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from millpond.base.errors import CheckpointError
from millpond.inference.weights.base import file_error, shortened, tensor_error
from millpond.inference.weights.gguf_types import TYPE_OF_CODE, UNSUPPORTED_NAMES, GgmlType
from millpond.inference.weights.mapped_file import MappedFile

MAGIC = b"GGUF"
MAX_METADATA_ENTRIES = 1 << 16
MAX_TENSORS = 1 << 20
MAX_STRINGS = 1 << 23  # over all arrays of a file; the largest vocabularies have 2**18 tokens and 2**19 merges
MAX_ARRAY_DEPTH = 3
MAX_DIMENSIONS = 4
MAX_ALIGNMENT = 1 << 16
DEFAULT_ALIGNMENT = 32
_FETCH_AGAIN = "The download was cut off or damaged: fetch the file again."
_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """One row of the tensor table. `shape` has the slowest dimension first, unlike the file's own order."""

    name: str
    shape: tuple[int, ...]
    kind: GgmlType
    offset: int
    size_bytes: int


class GgufFile:
    """A parsed GGUF file. `metadata` holds str, int, float, bool, lists of str and numpy arrays by key.

    Raises:
        CheckpointError: The file is truncated, forged, big-endian, of version 1, or holds an unsupported tensor type.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.mapped = MappedFile(path)
        try:
            cursor = _Cursor(self.mapped)
            num_tensors, num_entries = _read_head(cursor)
            self.metadata = _read_metadata(cursor, num_entries)
            self.tensors = _read_tensors(cursor, num_tensors, _alignment(path, self.metadata))
        except BaseException:
            self.mapped.close()
            raise

    @property
    def architecture(self) -> str:
        """The value of `general.architecture`."""
        return self.text("general.architecture")

    def text(self, key: str, default: str | None = None) -> str:
        """Reads a string from the metadata."""
        value = self.metadata.get(key, default)
        if not isinstance(value, str):
            raise file_error(self.path, f"its metadata has no string {key}.", fix="Convert the model again.")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """Reads an int or a float from the metadata."""
        value = self.metadata.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise file_error(self.path, f"its metadata has no number {key}.", fix="Convert the model again.")
        return value

    def count(self, key: str, default: int | None = None) -> int:
        """Reads a whole number that is not negative."""
        value = self.number(key, default)
        if not isinstance(value, int) or value < 0:
            raise file_error(self.path, f"{key} is {value}, not a count.", fix="Convert the model again.")
        return value

    def token_id(self, key: str) -> int | None:
        """Reads a token id; None when the file has none (some write -1 for it)."""
        value = self.metadata.get(key)
        return value if isinstance(value, int) and 0 <= value < 0xFFFFFFFF else None

    def flag(self, key: str, default: bool) -> bool:
        """Reads a bool from the metadata."""
        value = self.metadata.get(key, default)
        return value if isinstance(value, bool) else default

    def close(self) -> None:
        """Unmaps the file."""
        self.mapped.close()


class _Cursor:
    """A position in the file, with the checks that keep it inside."""

    def __init__(self, mapped: MappedFile) -> None:
        self.path = mapped.path
        self.size = mapped.size_bytes
        self.buffer = mapped.buffer
        self.position = 0
        self.num_strings = 0

    def error(self, reason: str) -> CheckpointError:
        return file_error(self.path, reason, fix=_FETCH_AGAIN)

    def take(self, size: int) -> int:
        """Moves over `size` bytes and returns where they start."""
        start = self.position
        if size > self.size - start:
            raise self.error(f"truncated: it ends at byte {self.size}, within its header.")
        self.position = start + size
        return start

    def scalar(self, code: str) -> Any:
        return struct.unpack_from(code, self.buffer, self.take(struct.calcsize(code)))[0]

    def string(self) -> str:
        size = self.scalar("<Q")
        start = self.take(size)
        return self.buffer[start : start + size].decode("utf-8", "replace")

    def strings(self, count: int) -> list[str]:
        """The hot loop of opening a file: a vocabulary has hundreds of thousands of strings."""
        self.num_strings += count
        if self.num_strings > MAX_STRINGS or count > (self.size - self.position) // 8:
            raise self.error(f"its metadata claims {count} strings, which it cannot hold.")
        buffer, size, position, unpack = self.buffer, self.size, self.position, struct.Struct("<Q").unpack_from
        result = []
        for _ in range(count):
            if position + 8 > size:
                raise self.error(f"truncated: it ends at byte {size}, within its metadata.")
            end = position + 8 + unpack(buffer, position)[0]
            if end > size:
                raise self.error(f"truncated: it ends at byte {size}, within its metadata.")
            result.append(buffer[position + 8 : end].decode("utf-8", "replace"))
            position = end
        self.position = position
        return result

    def value(self, code: int, depth: int = 0) -> Any:
        if code == _STRING:
            return self.string()
        if code in _SCALARS:
            return self.scalar(_SCALARS[code])
        if code != _ARRAY or depth == MAX_ARRAY_DEPTH:
            raise self.error(f"its metadata holds a value of the unknown type {code}.")
        element, count = self.scalar("<I"), self.scalar("<Q")
        if element == _STRING:
            return self.strings(count)
        if element in _SCALARS:
            size = struct.calcsize(_SCALARS[element])
            if count > (self.size - self.position) // size:
                raise self.error(f"its metadata claims an array of {count} numbers, which it cannot hold.")
            return np.frombuffer(self.bytes(count * size), dtype=np.dtype(_SCALARS[element]))
        if count > MAX_METADATA_ENTRIES:
            raise self.error(f"its metadata claims an array of {count} arrays.")
        return [self.value(element, depth + 1) for _ in range(count)]

    def bytes(self, size: int) -> bytes:
        start = self.take(size)
        return self.buffer[start : start + size]


def _read_head(cursor: _Cursor) -> tuple[int, int]:
    if cursor.buffer[:4] != MAGIC:
        raise file_error(cursor.path, "it does not start with GGUF.", fix="Pass a GGUF file or a model directory.")
    cursor.take(4)
    version = cursor.scalar("<I")
    if version not in (2, 3):
        is_swapped = version & 0xFFFF == 0
        what = "is big-endian" if is_swapped else f"has version {version}"
        raise file_error(cursor.path, f"it {what}.", fix="Millpond reads versions 2 and 3, little-endian: convert it.")
    num_tensors, num_entries = cursor.scalar("<Q"), cursor.scalar("<Q")
    if num_tensors > min(MAX_TENSORS, cursor.size // 24) or num_entries > min(MAX_METADATA_ENTRIES, cursor.size // 13):
        raise cursor.error(f"it claims {num_tensors} tensors and {num_entries} metadata entries, which it cannot hold.")
    return num_tensors, num_entries


def _read_metadata(cursor: _Cursor, num_entries: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for _ in range(num_entries):
        key = cursor.string()
        if key in metadata:
            raise cursor.error(f"its metadata has the key {shortened(key)} twice.")
        metadata[key] = cursor.value(cursor.scalar("<I"))
    return metadata


def _alignment(path: str, metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 8 <= alignment <= MAX_ALIGNMENT or alignment % 8:
        raise file_error(path, f"its alignment {shortened(str(alignment))} is not a multiple of 8.", fix=_FETCH_AGAIN)
    return alignment


def _read_tensors(cursor: _Cursor, num_tensors: int, alignment: int) -> dict[str, GgufTensor]:
    tensors: dict[str, GgufTensor] = {}
    for _ in range(num_tensors):
        tensor = _read_tensor(cursor, alignment)
        if tensor.name in tensors:
            raise tensor_error(cursor.path, tensor.name, "stands in the table twice.", fix=_FETCH_AGAIN)
        tensors[tensor.name] = tensor
    data_start = -(-cursor.position // alignment) * alignment
    placed = {
        name: GgufTensor(name, tensor.shape, tensor.kind, data_start + tensor.offset, tensor.size_bytes)
        for name, tensor in tensors.items()
    }
    _check_places(cursor, placed)
    return placed


def _read_tensor(cursor: _Cursor, alignment: int) -> GgufTensor:
    name = cursor.string()
    num_dimensions = cursor.scalar("<I")
    if not 1 <= num_dimensions <= MAX_DIMENSIONS:
        raise tensor_error(cursor.path, name, f"it has {num_dimensions} dimensions.", fix=_FETCH_AGAIN)
    shape = tuple(cursor.scalar("<Q") for _ in range(num_dimensions))[::-1]
    code, offset = cursor.scalar("<I"), cursor.scalar("<Q")
    kind = TYPE_OF_CODE.get(code)
    if kind is None:
        what = UNSUPPORTED_NAMES.get(code, f"number {code}")
        readable = ", ".join(kind.name for kind in TYPE_OF_CODE.values())
        fix = f"Take a file quantised otherwise; Millpond reads {readable}."
        raise tensor_error(cursor.path, name, f"the type {what} is not supported.", fix=fix)
    if shape[-1] % kind.block_size:
        reason = f"rows of {shape[-1]} numbers are no whole blocks of {kind.name} ({kind.block_size})."
        raise tensor_error(cursor.path, name, reason, fix=_FETCH_AGAIN)
    if offset % alignment:
        raise tensor_error(cursor.path, name, f"its offset {offset} is not aligned.", fix=_FETCH_AGAIN)
    size = kind.row_bytes(shape[-1])
    for extent in shape[:-1]:
        size *= extent
    return GgufTensor(name, shape, kind, offset, size)


def _check_places(cursor: _Cursor, tensors: dict[str, GgufTensor]) -> None:
    position, previous = 0, ""
    for tensor in sorted(tensors.values(), key=lambda tensor: tensor.offset):
        end = tensor.offset + tensor.size_bytes
        if end > cursor.size:
            reason = f"truncated: it ends at byte {end} and the file has {cursor.size}."
            raise tensor_error(cursor.path, tensor.name, reason, fix=_FETCH_AGAIN)
        if tensor.offset < position:
            reason = f"overlaps tensor {shortened(previous)}."
            raise tensor_error(cursor.path, tensor.name, reason, fix=_FETCH_AGAIN)
        position, previous = end, tensor.name

"""The header of one `.safetensors` file, parsed and checked before anything is mapped.

Own parser: the reference library reports a bad file without the tensor's name, and maps it before it has looked at
the shapes. Knows no torch and no directories; safetensors_checkpoint.py reads the bytes.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from typing import Any

from millpond.inference.weights.base import TensorInfo, file_error, shortened, tensor_error

MAX_HEADER_BYTES = 100_000_000  # the reference implementation's own limit
MAX_DIMENSIONS = 8
ITEM_BYTES = {
    "F64": 8,
    "F32": 4,
    "F16": 2,
    "BF16": 2,
    "I64": 8,
    "I32": 4,
    "I16": 2,
    "I8": 1,
    "U8": 1,
    "BOOL": 1,
}
_FETCH_AGAIN = "The download was cut off or damaged: fetch the file again."


def read_safetensors_header(path: str) -> dict[str, TensorInfo]:
    """Returns the file's tensors by name.

    Raises:
        CheckpointError: The file is truncated, its header is no header, or a tensor's type, shape or place is wrong.
    """
    try:
        with open(path, "rb") as file:
            file_size = os.fstat(file.fileno()).st_size
            prefix = file.read(8)
            header_size = int.from_bytes(prefix, "little")
            if len(prefix) < 8:
                raise file_error(path, f"{file_size} bytes are too few for a safetensors file.", fix=_FETCH_AGAIN)
            if header_size > MAX_HEADER_BYTES:
                raise file_error(path, f"its header claims {header_size} bytes; this is no safetensors file.")
            if header_size > file_size - 8:
                reason = f"truncated: its header claims {header_size} bytes and the file has {file_size}."
                raise file_error(path, reason, fix=_FETCH_AGAIN)
            header = file.read(header_size)
    except OSError as error:
        raise file_error(path, error.strerror or str(error), fix="Check the path.") from error
    data_start = 8 + header_size
    entries = _parse(path, header)
    tensors = {name: _tensor(path, name, entry, data_start, file_size) for name, entry in entries.items()}
    _check_spans(path, tensors, data_start, file_size)
    return tensors


def _parse(path: str, header: bytes) -> dict[str, Any]:
    try:
        entries = json.loads(header.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise file_error(path, f"its header is not valid JSON: {shortened(str(error))}.", fix=_FETCH_AGAIN) from error
    if not isinstance(entries, dict):
        raise file_error(path, "its header is not a JSON object.", fix=_FETCH_AGAIN)
    entries.pop("__metadata__", None)
    return entries


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        (name, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the name {shortened(name)} stands in it twice")
    return entries


def _tensor(path: str, name: str, entry: Any, data_start: int, file_size: int) -> TensorInfo:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        reason = "its header entry lacks a dtype, a shape or two data offsets."
        raise tensor_error(path, name, reason, fix=_FETCH_AGAIN) from error
    if not isinstance(dtype, str) or dtype not in ITEM_BYTES:
        fix = f"Millpond reads {', '.join(ITEM_BYTES)}: convert the checkpoint to one of them."
        raise tensor_error(path, name, f"the type {shortened(str(dtype))} is not supported.", fix=fix)
    if not isinstance(shape, list) or len(shape) > MAX_DIMENSIONS or not all(_is_count(extent) for extent in shape):
        raise tensor_error(path, name, f"{shortened(str(shape))} is not a shape.", fix=_FETCH_AGAIN)
    if not (_is_count(begin) and _is_count(end) and begin <= end):
        raise tensor_error(path, name, "its data offsets are no range.", fix=_FETCH_AGAIN)
    info = TensorInfo(name, tuple(shape), dtype, path, data_start + begin, end - begin)
    expected = info.num_elements * ITEM_BYTES[dtype]
    if info.size_bytes != expected:
        reason = f"its shape {shape} in {dtype} takes {expected} bytes and {info.size_bytes} are given."
        raise tensor_error(path, name, reason, fix=_FETCH_AGAIN)
    if data_start + end > file_size:
        reason = f"truncated: it ends at byte {data_start + end} and the file has {file_size}."
        raise tensor_error(path, name, reason, fix=_FETCH_AGAIN)
    return info


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_spans(path: str, tensors: dict[str, TensorInfo], data_start: int, file_size: int) -> None:
    """The format wants the tensors to fill the file: no overlap, no gap, nothing behind them."""
    spans = sorted((info.offset, info.offset + info.size_bytes, name) for name, info in tensors.items())
    position, previous = data_start, ""
    for begin, end, name in spans:
        if begin < position:
            raise tensor_error(path, name, f"overlaps tensor {shortened(previous)}.", fix=_FETCH_AGAIN)
        if begin > position:
            raise tensor_error(path, name, f"{begin - position} bytes before it belong to no tensor.", fix=_FETCH_AGAIN)
        position, previous = end, name
    if position != file_size:
        raise file_error(path, f"{file_size - position} bytes at its end belong to no tensor.", fix=_FETCH_AGAIN)

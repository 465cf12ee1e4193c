"""A GGUF model (one file, or all files of a split one) behind the same face as a Hugging Face directory.

Tensors carry Hugging Face names and shapes; what conversion changed is undone on read, on the rows that were asked
for and no others. Called by opening.py. Parsing is gguf_file.py's, names are gguf_families.py's.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from millpond.base.errors import CheckpointError
from millpond.inference.weights.base import TensorInfo, file_error, slice_bounds, tensor_error
from millpond.inference.weights.digest import digest_weights
from millpond.inference.weights.gguf_config import make_config
from millpond.inference.weights.gguf_dequant import dequantise
from millpond.inference.weights.gguf_families import FAMILIES, Change, GgufFamily, hf_name, is_ignored
from millpond.inference.weights.gguf_file import GgufFile, GgufTensor

if TYPE_CHECKING:
    import torch

MAX_SPLIT_FILES = 1000
_SPLIT_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf")
_TORCH_TYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class _Stored:
    """Where a tensor is and what was done to it."""

    file: GgufFile
    tensor: GgufTensor
    change: Change


class GgufCheckpoint:
    """A GGUF model, opened. `metadata` is the first file's, for the tokenizer.

    Raises:
        CheckpointError: A file is malformed, or its architecture or a tensor's type is not supported.
    """

    format: Literal["safetensors", "gguf"] = "gguf"

    def __init__(self, path: str) -> None:
        self.path = path
        self._pool: ThreadPoolExecutor | None = None
        self._files = _open_files(path)
        try:
            first = self._files[0]
            self.metadata: Mapping[str, Any] = first.metadata
            self.config: dict[str, Any] = make_config(first)
            self.generation_config: dict[str, Any] = {}
            self._stored = self._name_tensors(FAMILIES[first.architecture])
            self.tensors: Mapping[str, TensorInfo] = {name: _info(name, at) for name, at in self._stored.items()}
        except BaseException:
            self.close()
            raise

    def read(self, name: str, *, start: int | None = None, stop: int | None = None, dim: int = 0) -> torch.Tensor:
        """Reads a tensor or a slice of it, quantised ones as float32; see `Checkpoint.read`."""
        at, info = self._find(name)
        start, stop = slice_bounds(info, start, stop, dim)
        tensor = at.tensor
        if len(tensor.shape) == 1:
            rows = self._row_indices(at, start, stop)
            vector = self._numbers(at, 0, 1)[0]
            vector = vector[start:stop] if rows is None else vector[rows]
            return vector - 1 if at.change is Change.PLUS_ONE else vector
        if at.change is Change.TRANSPOSED:
            part = self._numbers(at, start, stop) if dim == 1 else self._columns(at, start, stop)
            return part.t().contiguous()
        return self._numbers(at, start, stop) if dim == 0 else self._columns(at, start, stop)

    def read_raw(self, name: str, *, start: int | None = None, stop: int | None = None) -> torch.Tensor:
        """Reads rows [start, stop) as they are stored: uint8 [rows, bytes of a row], rows in Hugging Face order.

        For kernels that compute on the blocks themselves; `tensors[name].dtype` says which kind they are.

        Raises:
            CheckpointError: There is no such tensor, or its rows are columns here (GPT-2's matrices).
            ValueError: The slice does not lie within the tensor.
        """
        at, info = self._find(name)
        if not self.has_raw_rows(name):
            raise tensor_error(self.path, name, f"cannot be read raw: it is stored {at.change.value}.")
        start, stop = slice_bounds(info, start, stop, 0)
        return self._raw_rows(at, start, stop)

    def has_raw_rows(self, name: str) -> bool:
        """Whether `read_raw` can read a tensor."""
        at, info = self._find(name)
        return at.change not in (Change.TRANSPOSED, Change.PLUS_ONE) and len(info.shape) == 2

    def content_digest(self) -> str:
        """Returns the SHA-256 that names these weights."""

        def read_bytes(info: TensorInfo, offset: int, size: int) -> bytes:
            return self._stored[info.name].file.mapped.bytes_at(info.offset + offset, size)

        return digest_weights(self.config, self.tensors.values(), read_bytes)

    def release(self) -> None:
        """Gives back the pages that were read."""
        for file in self._files:
            file.mapped.release()

    def close(self) -> None:
        """Unmaps the files."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
        for file in self._files:
            file.close()
        self._files = []

    def _find(self, name: str) -> tuple[_Stored, TensorInfo]:
        at = self._stored.get(name)
        if at is None:
            raise tensor_error(self.path, name, "there is no tensor of that name.", fix="Is the file complete?")
        return at, self.tensors[name]

    def _name_tensors(self, family: GgufFamily) -> dict[str, _Stored]:
        stored: dict[str, _Stored] = {}
        for file in self._files:
            for tensor in file.tensors.values():
                if is_ignored(tensor.name):
                    continue
                found = hf_name(family, tensor.name)
                if found is None:
                    fix = f"Millpond knows no such tensor in {self._files[0].architecture}."
                    raise tensor_error(file.path, tensor.name, "it is not known for this architecture.", fix=fix)
                name, change = found
                if name in stored:
                    raise tensor_error(file.path, tensor.name, "it is in two files of the split model.")
                self._check_shape(file, tensor, change)
                stored[name] = _Stored(file, tensor, change)
        return stored

    def _check_shape(self, file: GgufFile, tensor: GgufTensor, change: Change) -> None:
        """So that no reading of it can fail later."""
        shape = tensor.shape
        if len(shape) > 2:
            raise tensor_error(file.path, tensor.name, f"its shape {list(shape)} has more than two dimensions.")
        if change is Change.TRANSPOSED and len(shape) != 2:
            raise tensor_error(file.path, tensor.name, f"its shape {list(shape)} is no matrix.")
        if change in (Change.QUERY_ROTARY, Change.KEY_ROTARY, Change.GROUPED_BY_ROLE):
            heads, head_dim = self._heads(change)
            groups = 3 if change is Change.GROUPED_BY_ROLE else 1
            if shape[0] != groups * heads * head_dim:
                reason = f"its {shape[0]} rows are not {groups} x {heads} heads of {head_dim}."
                raise tensor_error(file.path, tensor.name, reason, fix="Convert the model again.")

    def _heads(self, change: Change) -> tuple[int, int]:
        if change is Change.GROUPED_BY_ROLE:
            heads = max(1, int(self.config["n_head"]))
            return heads, int(self.config["hidden_size"]) // heads
        key = "num_attention_heads" if change is Change.QUERY_ROTARY else "num_key_value_heads"
        return int(self.config[key]), int(self.config["head_dim"])

    def _row_indices(self, at: _Stored, start: int, stop: int) -> torch.Tensor | None:
        """Which stored rows the Hugging Face rows [start, stop) are; None where they are the same."""
        if at.change not in (Change.QUERY_ROTARY, Change.KEY_ROTARY, Change.GROUPED_BY_ROLE):
            return None
        import torch

        heads, head_dim = self._heads(at.change)
        if at.change is Change.GROUPED_BY_ROLE:
            stored = torch.arange(3 * heads * head_dim).view(3, heads, head_dim).transpose(0, 1)
        else:
            stored = torch.arange(heads * head_dim).view(heads, head_dim // 2, 2).transpose(1, 2)
        return stored.reshape(-1)[start:stop]

    def _raw_rows(self, at: _Stored, start: int, stop: int) -> torch.Tensor:
        from millpond.inference.weights.mapped_tensor import tensor_at

        tensor = at.tensor
        rows = tensor.shape[0] if len(tensor.shape) == 2 else 1
        row_bytes = tensor.kind.row_bytes(tensor.shape[-1])
        raw = tensor_at(at.file.mapped, tensor.offset, tensor.size_bytes).view(rows, row_bytes)
        indices = self._row_indices(at, start, stop) if len(tensor.shape) == 2 else None
        return raw[start:stop] if indices is None else raw[indices]

    def _numbers(self, at: _Stored, start: int, stop: int) -> torch.Tensor:
        """Whole rows of numbers."""
        return self._decode(self._raw_rows(at, start, stop), at.tensor, at.tensor.shape[-1])

    def _columns(self, at: _Stored, start: int, stop: int) -> torch.Tensor:
        """Columns [start, stop) of all rows; no block outside of them is touched."""
        kind = at.tensor.kind
        first, last = start // kind.block_size, -(-stop // kind.block_size)
        raw = self._raw_rows(at, 0, at.tensor.shape[0])[:, first * kind.type_size : last * kind.type_size]
        numbers = self._decode(raw.contiguous(), at.tensor, (last - first) * kind.block_size)
        offset = first * kind.block_size
        return numbers[:, start - offset : stop - offset].contiguous()

    def _decode(self, raw: torch.Tensor, tensor: GgufTensor, num_columns: int) -> torch.Tensor:
        import torch

        if not tensor.kind.is_quantised:
            return raw.contiguous().view(getattr(torch, _TORCH_TYPES[tensor.kind.name]))
        if self._pool is None:
            self._pool = ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="dequantise")
        return torch.from_numpy(dequantise(raw.numpy(), tensor.kind, num_columns, self._pool))


def _info(name: str, at: _Stored) -> TensorInfo:
    tensor = at.tensor
    shape = tensor.shape[::-1] if at.change is Change.TRANSPOSED else tensor.shape
    return TensorInfo(name, shape, tensor.kind.name, at.file.path, tensor.offset, tensor.size_bytes)


def _open_files(path: str) -> list[GgufFile]:
    """The file, and its siblings when it is one of a split model (name-00001-of-00003.gguf)."""
    files = [GgufFile(path)]
    try:
        count = files[0].count("split.count", 1)
        if count <= 1:
            return files
        match = _SPLIT_NAME.fullmatch(Path(path).name)
        if match is None or int(match[3]) != count or count > MAX_SPLIT_FILES:
            raise file_error(path, f"it is one of {count} files and is not named NAME-00001-of-{count:05}.gguf.")
        if int(match[2]) != 1:
            raise file_error(path, "it is not the first file of the split model.", fix="Pass the file 00001.")
        for number in range(2, count + 1):
            sibling = Path(path).with_name(f"{match[1]}-{number:05}-of-{count:05}.gguf")
            if not sibling.is_file():
                raise CheckpointError(f"{sibling}: this part of the model is missing.", fix="Fetch all its files.")
            files.append(GgufFile(str(sibling)))
    except BaseException:
        for file in files:
            file.close()
        raise
    return files

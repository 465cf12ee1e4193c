"""A Hugging Face directory: config.json, safetensors files (one, or shards with an index) read by mmap.

Called by opening.py. Tensors keep their stored type. Knows of families only that some were published without the
prefix their own model class uses, which `hf_names.py` puts back.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from millpond.base.errors import CheckpointError
from millpond.inference.weights.base import TensorInfo, file_error, shortened, slice_bounds, tensor_error
from millpond.inference.weights.digest import digest_weights
from millpond.inference.weights.hf_names import class_name, text_config
from millpond.inference.weights.json_file import read_json_object
from millpond.inference.weights.mapped_file import MappedFile
from millpond.inference.weights.model_path import PICKLED_REASON
from millpond.inference.weights.safetensors_file import ITEM_BYTES, read_safetensors_header

if TYPE_CHECKING:
    import torch

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_INDEX_BYTES = 64 << 20
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_TORCH_TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


class SafetensorsCheckpoint:
    """A directory of safetensors files, opened.

    Raises:
        CheckpointError: config.json or a weight file is missing or malformed.
    """

    format: Literal["safetensors", "gguf"] = "safetensors"

    def __init__(self, path: str) -> None:
        directory = Path(path)
        config = read_json_object(directory / "config.json")
        if config is None:
            raise file_error(path, "it has no config.json.", fix="Pass a Hugging Face model directory or a .gguf file.")
        self.path = path
        self.config: dict[str, Any] = text_config(config)
        self.generation_config: dict[str, Any] = read_json_object(directory / "generation_config.json") or {}
        model_type = str(self.config.get("model_type", ""))
        stored = _read_tables(directory)
        self.tensors: Mapping[str, TensorInfo] = _by_class_name(stored, model_type)
        self._files = {file: MappedFile(file) for file in sorted({info.file for info in self.tensors.values()})}

    def read(self, name: str, *, start: int | None = None, stop: int | None = None, dim: int = 0) -> torch.Tensor:
        """Reads a tensor or a slice of it; see `Checkpoint.read`."""
        import torch

        from millpond.inference.weights.mapped_tensor import tensor_at

        info = self.tensors.get(name)
        if info is None:
            raise tensor_error(self.path, name, "there is no tensor of that name.", fix="Is the checkpoint complete?")
        start, stop = slice_bounds(info, start, stop, dim)
        flat = tensor_at(self._files[info.file], info.offset, info.size_bytes)
        if info.offset % ITEM_BYTES[info.dtype]:
            flat = flat.clone()  # a header of odd length leaves the numbers unaligned, which torch must not see
        tensor = flat.view(getattr(torch, _TORCH_TYPES[info.dtype])).view(info.shape)
        if not info.shape:
            return tensor
        return tensor.narrow(dim, start, stop - start).contiguous()

    def content_digest(self) -> str:
        """Returns the SHA-256 that names these weights."""

        def read_bytes(info: TensorInfo, offset: int, size: int) -> bytes:
            return self._files[info.file].bytes_at(info.offset + offset, size)

        return digest_weights(self.config, self.tensors.values(), read_bytes)

    def release(self) -> None:
        """Gives back the pages that were read."""
        for file in self._files.values():
            file.release()

    def close(self) -> None:
        """Unmaps the files."""
        for file in self._files.values():
            file.close()
        self._files = {}


def _read_tables(directory: Path) -> dict[str, TensorInfo]:
    index = read_json_object(directory / INDEX_NAME, max_bytes=MAX_INDEX_BYTES)
    if index is not None:
        return _read_shards(directory, index)
    if (directory / SINGLE_NAME).exists():
        return read_safetensors_header(str(directory / SINGLE_NAME))
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise _no_weights(directory)
    tensors: dict[str, TensorInfo] = {}
    for file in files:
        for name, info in read_safetensors_header(str(file)).items():
            if name in tensors:
                reason = f"stands in {Path(tensors[name].file).name} as well, and there is no {INDEX_NAME}."
                raise tensor_error(str(file), name, reason, fix="Keep one set of weights in the directory.")
            tensors[name] = info
    return tensors


def _read_shards(directory: Path, index: dict[str, Any]) -> dict[str, TensorInfo]:
    index_path = str(directory / INDEX_NAME)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise file_error(index_path, "it has no weight_map.", fix="Fetch it again.")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain_name(shard):
            reason = f"its shard {shortened(str(shard))} is not the name of a file in this directory."
            raise tensor_error(index_path, name, reason, fix="Do not use this checkpoint: its index is forged.")
    tables: dict[str, dict[str, TensorInfo]] = {}
    for shard in sorted(set(weight_map.values())):
        if not (directory / shard).is_file():
            named = next(name for name, value in weight_map.items() if value == shard)
            reason = f"its shard {shard} is missing."
            raise tensor_error(index_path, named, reason, fix="Fetch the missing file into the directory.")
        tables[shard] = read_safetensors_header(str(directory / shard))
    tensors = {}
    for name, shard in weight_map.items():
        if name not in tables[shard]:
            raise tensor_error(index_path, name, f"it is not in {shard}.", fix="Fetch the index and that file again.")
        tensors[name] = tables[shard][name]
    return tensors


def _is_plain_name(shard: str) -> bool:
    return shard == Path(shard).name and shard.endswith(".safetensors") and "\0" not in shard and "\\" not in shard


def _no_weights(directory: Path) -> CheckpointError:
    pickled = sorted(file.name for pattern in _PICKLED for file in directory.glob(pattern))
    if not pickled:
        return file_error(
            str(directory), "it has no .safetensors file.", fix="Fetch the weights, or pass another directory."
        )
    convert = (
        "Convert it once, on a machine where you trust it: "
        'python -c "from transformers import AutoModelForCausalLM as M; '
        f"M.from_pretrained('{directory}').save_pretrained('{directory}')\"."
    )
    return file_error(str(directory / pickled[0]), PICKLED_REASON, fix=convert)


def _by_class_name(stored: dict[str, TensorInfo], model_type: str) -> dict[str, TensorInfo]:
    tensors: dict[str, TensorInfo] = {}
    for name, info in stored.items():
        renamed = class_name(name, model_type)
        if renamed is None:
            continue
        if renamed in tensors:
            raise tensor_error(info.file, name, f"is the same parameter as {shortened(tensors[renamed].name)}.")
        tensors[renamed] = TensorInfo(renamed, info.shape, info.dtype, info.file, info.offset, info.size_bytes)
    return tensors

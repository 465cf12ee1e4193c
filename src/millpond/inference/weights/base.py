"""What every checkpoint format offers: a config, a table of tensors, and reading a slice of one.

`SafetensorsCheckpoint` and `GgufCheckpoint` implement it; models and the executor see nothing else. Opening one maps
files and checks their tables; it reads no weights and imports no torch, so that the gateway may open one too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from millpond.base.errors import CheckpointError

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor: its Hugging Face name and shape, and where its bytes are.

    `shape` is the shape `read` returns; `offset` counts from the start of `file`. `dtype` is the stored type in the
    format's own words: "F32", "BF16", "Q4_K", ...
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: str
    offset: int
    size_bytes: int

    @property
    def num_elements(self) -> int:
        """How many numbers it holds."""
        count = 1
        for extent in self.shape:
            count *= extent
        return count


class Checkpoint(Protocol):
    """A model on disk, opened. Tensor names and config keys are those of Hugging Face, whatever the format."""

    path: str
    format: Literal["safetensors", "gguf"]
    config: dict[str, Any]
    generation_config: dict[str, Any]
    tensors: Mapping[str, TensorInfo]

    def read(self, name: str, *, start: int | None = None, stop: int | None = None, dim: int = 0) -> torch.Tensor:
        """Reads one tensor, or its part [start, stop) along `dim`; touches no other part of the file.

        The result may share memory with the mapped file: do not write to it. Quantised tensors come as float32, all
        others in the stored type.

        Raises:
            CheckpointError: There is no tensor of that name.
            ValueError: The slice does not lie within the tensor.
        """
        ...

    def content_digest(self) -> str:
        """Returns a SHA-256 that names these weights; see docs/design/checkpoints.md for what it covers."""
        ...

    def release(self) -> None:
        """Gives the memory of what was read back to the system. Tensors stay valid: their bytes are read again."""
        ...

    def close(self) -> None:
        """Unmaps the files once no tensor that was read shares their memory any more."""
        ...


def tensor_error(file: str, tensor: str, reason: str, *, fix: str = "") -> CheckpointError:
    """The error for one bad tensor, with the file and the tensor in front of the reason."""
    return CheckpointError(f"{file}: tensor {shortened(tensor)}: {reason}", fix=fix)


def file_error(file: str, reason: str, *, fix: str = "") -> CheckpointError:
    """The error for a bad file."""
    return CheckpointError(f"{file}: {reason}", fix=fix)


def shortened(text: str, limit: int = 120) -> str:
    """Quotes a name from a file that may be hostile: one line, bounded."""
    return repr(text) if len(text) <= limit else f"{text[:limit]!r}..."


def slice_bounds(info: TensorInfo, start: int | None, stop: int | None, dim: int) -> tuple[int, int]:
    """Fills in and checks a slice along `dim`."""
    if not 0 <= dim < max(1, len(info.shape)):
        raise ValueError(f"{info.name} has {len(info.shape)} dimensions; there is no dimension {dim}")
    extent = info.shape[dim] if info.shape else 1
    start = 0 if start is None else start
    stop = extent if stop is None else stop
    if not 0 <= start <= stop <= extent:
        raise ValueError(f"{info.name} has {extent} entries along dimension {dim}; [{start}:{stop}] is not in it")
    return start, stop

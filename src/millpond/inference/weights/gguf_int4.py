"""GGUF's 4-bit blocks in the form that 4-bit products take (`inference.ops.int4`), without a change to their numbers.

Q4_0 and Q4_1 are that form but for the order of its parts; of Q4_K the halves of bytes change places and the 6-bit
scales are multiplied out, rounded to halves. Called by the executor through `StoredTensors`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from millpond.inference.weights.base import Checkpoint, tensor_error
from millpond.inference.weights.gguf_checkpoint import GgufCheckpoint
from millpond.inference.weights.gguf_dequant import k_scales

if TYPE_CHECKING:
    import torch

    from millpond.inference.ops.int4 import Int4Weight

_FLOATS = ("F32", "F16", "BF16", "F64")
_K_ROWS_AT_ONCE = 1024


class StoredBlocks:
    """What a GGUF model's tensors are stored as; implements `inference.ops.program.StoredTensors`."""

    def __init__(self, checkpoint: GgufCheckpoint) -> None:
        self._checkpoint = checkpoint

    def kind(self, name: str) -> Literal["float", "int4", "int4_min", "other"]:
        """What a tensor's numbers are stored as; 4 bits only where its rows can be had as they are."""
        dtype = self._checkpoint.tensors[name].dtype
        if dtype in _FLOATS:
            return "float"
        if dtype not in ("Q4_0", "Q4_1", "Q4_K") or not self._checkpoint.has_raw_rows(name):
            return "other"
        return "int4" if dtype == "Q4_0" else "int4_min"

    def read_int4(self, name: str) -> Int4Weight:
        """A tensor that is stored in 4 bits.

        Raises:
            CheckpointError: Its scales are too large for halves.
        """
        from millpond.inference.ops.int4 import Int4Weight

        raw = self._checkpoint.read_raw(name)
        dtype = self._checkpoint.tensors[name].dtype
        if dtype == "Q4_0":
            blocks = raw.view(raw.shape[0], -1, 18)
            return Int4Weight(blocks[..., 2:].contiguous(), _halves(blocks, 0))
        if dtype == "Q4_1":
            blocks = raw.view(raw.shape[0], -1, 20)
            return Int4Weight(blocks[..., 4:].contiguous(), _halves(blocks, 0), _halves(blocks, 2))
        bits, scale, minimum = _split_q4_k(raw)
        if not (scale.isfinite().all() and minimum.isfinite().all()):
            reason = "its scales are larger than half precision holds."
            raise tensor_error(self._checkpoint.path, name, reason, fix="Choose another model.dtype than int4.")
        return Int4Weight(bits, scale, minimum)


def stored_blocks(checkpoint: Checkpoint) -> StoredBlocks | None:
    """What a checkpoint's tensors are stored as; None where all are floats."""
    return StoredBlocks(checkpoint) if isinstance(checkpoint, GgufCheckpoint) else None


def _halves(blocks: torch.Tensor, offset: int) -> torch.Tensor:
    import torch

    return blocks[..., offset : offset + 2].contiguous().view(torch.float16)[..., 0]


def _split_q4_k(raw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Bits [N, G, 16], scales and minimums [N, G] of rows of blocks of 256."""
    import torch

    rows = raw.shape[0]
    groups = raw.shape[1] // 144 * 8
    bits = torch.empty((rows, groups, 16), dtype=torch.uint8)
    scale, minimum = torch.empty((rows, groups), dtype=torch.float16), torch.empty((rows, groups), dtype=torch.float16)
    for start in range(0, rows, _K_ROWS_AT_ONCE):
        part = slice(start, start + _K_ROWS_AT_ONCE)
        blocks = raw[part].reshape(-1, 144)
        # Of 64 numbers the first 32 are the low halves of 32 bytes and the others their high halves.
        two = blocks[:, 16:].view(-1, 4, 32)
        numbers = torch.stack([two & 15, two >> 4], dim=2)  # [blocks, 4, 2, 32]
        bits[part] = (numbers[..., :16] | numbers[..., 16:] << 4).view(-1, groups, 16)
        scales, minimums = k_scales(blocks.numpy())
        scale[part] = torch.from_numpy(scales).view(-1, groups).half()
        minimum[part] = torch.from_numpy(minimums).view(-1, groups).neg().half()
    return bits, scale, minimum

"""Tensors that share a mapped file: the one place where its bytes meet torch.

Called by the two readers when a tensor is read, which is when torch gets imported.
"""

from __future__ import annotations

import numpy as np
import torch

from millpond.inference.weights.mapped_file import MappedFile


def tensor_at(file: MappedFile, offset: int, size: int) -> torch.Tensor:
    """Returns a range of the file as uint8; the mapping lives as long as the tensor."""
    if size == 0:
        return torch.empty(0, dtype=torch.uint8)
    # Through numpy, which holds the buffer open: torch.frombuffer lets go of it, and closing the file would unmap it.
    return torch.from_numpy(np.frombuffer(file.buffer, dtype=np.uint8, count=size, offset=offset))

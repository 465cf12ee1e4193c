"""Models on disk: Hugging Face directories and GGUF files, read lazily behind one `Checkpoint`.

Importing it loads no torch; reading a tensor does.
"""

from millpond.inference.weights.base import Checkpoint, TensorInfo
from millpond.inference.weights.opening import open_checkpoint

__all__ = ["Checkpoint", "TensorInfo", "open_checkpoint"]

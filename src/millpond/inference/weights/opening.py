"""Which reader a path needs. The one way into a checkpoint for the engine, the resolver and the command line."""

from __future__ import annotations

from millpond.inference.weights.base import Checkpoint
from millpond.inference.weights.gguf_checkpoint import GgufCheckpoint
from millpond.inference.weights.model_path import gguf_path
from millpond.inference.weights.safetensors_checkpoint import SafetensorsCheckpoint


def open_checkpoint(path: str) -> Checkpoint:
    """Opens a Hugging Face directory, or a GGUF file, or a directory that holds one GGUF model.

    Reads the tables and checks them; weights are read when `Checkpoint.read` asks for them.

    Raises:
        CheckpointError: The path is no model, or a file of it is missing, malformed or of an unsupported kind.
    """
    file = gguf_path(path)
    return SafetensorsCheckpoint(path) if file is None else GgufCheckpoint(str(file))

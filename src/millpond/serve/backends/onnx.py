"""`OnnxBackend`: ONNX files, run by onnxruntime in worker processes."""

from __future__ import annotations

from millpond.serve.backends.array_models import ArrayModelBackend
from millpond.serve.backends.worker_instance import WorkerSurroundings


class OnnxBackend(ArrayModelBackend):
    """Runs `model.onnx` files.

    Args:
        surroundings: Limits of workers.
    """

    def __init__(self, surroundings: WorkerSurroundings) -> None:
        super().__init__("onnxruntime", "onnx", ("model.onnx",), surroundings)

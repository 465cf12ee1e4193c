"""`make_worker_backends`: every back end whose models run in worker processes, by the name configurations use."""

from __future__ import annotations

from millpond.serve.backends.onnx import OnnxBackend
from millpond.serve.backends.python import PythonBackend
from millpond.serve.backends.stages import StagesBackend
from millpond.serve.backends.torch import TorchBackend
from millpond.serve.backends.worker_instance import WorkerSurroundings
from millpond.serve.servables.backend import Backend


def make_worker_backends(surroundings: WorkerSurroundings) -> dict[str, Backend]:
    """Returns the back ends; they start nothing until a model is loaded."""
    backends: list[Backend] = [
        PythonBackend(surroundings),
        StagesBackend(surroundings),
        OnnxBackend(surroundings),
        TorchBackend(surroundings),
    ]
    return {backend.name: backend for backend in backends}

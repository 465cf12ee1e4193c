"""`TorchBackend`: TorchScript (`.pt`) and exported programs (`.pt2`), run by torch in worker processes.

Tensors are matched to positions by Triton's rule: a name such as `INPUT__0` says the position; names of the module's
own parameters are taken too.
"""

from __future__ import annotations

from millpond.serve.backends.array_models import ArrayModelBackend
from millpond.serve.backends.worker_instance import WorkerSurroundings


class TorchBackend(ArrayModelBackend):
    """Runs `model.pt` and `model.pt2` files.

    Args:
        surroundings: Limits of workers.
    """

    def __init__(self, surroundings: WorkerSurroundings) -> None:
        super().__init__("pytorch", "torch", ("model.pt", "model.pt2"), surroundings)

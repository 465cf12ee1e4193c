"""Runners: what a worker process does with a batch. One file a kind of model; heavy imports stay inside them.

`entry` finds a runner by its key in `RUNNERS` and calls its `load(host, arguments)`. The gateway imports none of them.
"""

from __future__ import annotations

from typing import Any, Protocol

from millpond.serve.workers.execution import Execution
from millpond.serve.workers.host import Host

RUNNERS = {
    "python": "millpond.serve.workers.runners.python_model",
    "python_complete": "millpond.serve.workers.runners.python_complete",
    "stages": "millpond.serve.workers.runners.stage_program",
    "onnx": "millpond.serve.workers.runners.onnx_model",
    "torch": "millpond.serve.workers.runners.torch_model",
}


class Runner(Protocol):
    """A loaded model."""

    def info(self) -> dict[str, Any]:
        """Returns what the back end wants to know of the model: msgpack types only."""

    def execute(self, execution: Execution) -> None:
        """Answers every request of a batch, now or later from another thread, and calls `finish`.

        Raises:
            ServableError: The whole batch failed.
        """

    def close(self) -> None:
        """Called once before the process ends."""


class LoadRunner(Protocol):
    """The function `load` of a runner's module. What it raises is the reason why the model is not available."""

    def __call__(self, host: Host, arguments: dict[str, Any]) -> Runner: ...

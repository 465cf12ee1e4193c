"""The link from the API's free functions to the worker process they are called in.

A model file calls `pb_utils.load_model(...)` or `request.exec()` with nothing that says where; a worker process runs
one model, so there is one answer. The python runner sets it before it imports the model.
"""

from __future__ import annotations

from pathlib import Path

from millpond.compat.triton_python_backend_utils.errors import TritonModelException
from millpond.serve.workers.host import Host


class Connection:
    """Where this process's model is connected to; empty outside a worker."""

    def __init__(self) -> None:
        self._host: Host | None = None
        self._model_dir: Path | None = None

    def connect(self, host: Host, model_dir: Path) -> None:
        """Names the process's host and the folder of the model's files."""
        self._host, self._model_dir = host, model_dir

    @property
    def host(self) -> Host:
        """The worker's host.

        Raises:
            TritonModelException: This is no worker process.
        """
        if self._host is None:
            raise TritonModelException("this function only works in a model that a server runs")
        return self._host

    @property
    def model_dir(self) -> Path:
        """The folder of the model's version."""
        if self._model_dir is None:
            raise TritonModelException("this function only works in a model that a server runs")
        return self._model_dir


CONNECTION = Connection()

"""`WorkerInstance`: a replica that is one worker process; and what all back ends with workers are made with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from millpond.serve.backends.model_files import ModelFiles
from millpond.serve.servables.backend import ExecutionTiming, Replies
from millpond.serve.servables.config import InstanceGroup, ServableConfig
from millpond.serve.servables.messages import InferRequest
from millpond.serve.workers import wire
from millpond.serve.workers.calls import ServableCalls
from millpond.serve.workers.worker import Worker, WorkerLimits, WorkerSpec

# A decoupled model takes the next batch while it still answers the last one; this bounds how many.
DECOUPLED_CONCURRENCY = 64

# Told (the servable's name, a number that is the worker's own, what the model published).
OnMetric = Callable[[str, int, wire.MetricUpdate], None]


@dataclass(frozen=True, slots=True)
class WorkerSurroundings:
    """What back ends with workers need of the gateway.

    Attributes:
        limits: Of every worker.
        calls: Answers models that call other models; None refuses.
        on_metric: Told what models publish.
    """

    limits: WorkerLimits = field(default_factory=WorkerLimits)
    calls: ServableCalls | None = None
    on_metric: OnMetric | None = None

    def worker(self, spec: WorkerSpec, model: str) -> Worker:
        """Returns a worker that is not started yet."""
        worker: Worker
        if self.on_metric is None:
            return Worker(spec, self.limits, self.calls)
        on_metric = self.on_metric
        worker = Worker(spec, self.limits, self.calls, lambda update: on_metric(model, id(worker), update))
        return worker


class WorkerInstance:
    """A replica in a worker process that is up.

    Args:
        worker: Started.
        files: Freed with the replica; None when it has none.
        concurrency: How many executions it takes at once.
    """

    def __init__(self, worker: Worker, files: ModelFiles | None, concurrency: int) -> None:
        self.concurrency = concurrency
        self.queues_ahead = concurrency == 1  # its process takes executions in order, whether or not it is busy
        self.worker = worker
        self.begin = worker.begin  # see `backend.Beginner.begin`; every request comes there
        self._files = files

    async def execute(self, requests: Sequence[InferRequest], replies: Replies) -> ExecutionTiming:
        """See `backend.Instance.execute`."""
        return await self.worker.execute(requests, replies)

    def lend(self, num_bytes: int) -> NDArray[np.uint8] | None:
        """See `backend.Lender`."""
        return self.worker.lend(num_bytes)

    async def cancel(self, request: InferRequest) -> None:
        """Tells the model that nobody waits for the request."""
        self.worker.cancel(request)

    async def restart(self) -> None:
        """Starts the process again."""
        await self.worker.restart()

    async def close(self) -> None:
        """Ends the process and removes temporary files."""
        await self.worker.close()
        if self._files is not None:
            self._files.close()


async def start_instance(worker: Worker, files: ModelFiles | None, concurrency: int = 1) -> WorkerInstance:
    """Starts a worker and returns it as a replica; frees the files when it cannot be loaded."""
    try:
        await worker.start()
    except BaseException:
        if files is not None:
            files.close()
        raise
    return WorkerInstance(worker, files, concurrency)


def instance_name(config: ServableConfig, group: InstanceGroup, number: int) -> str:
    """Returns a replica's name as Triton forms it: the group's and its number."""
    return f"{group.name or f'{config.name}_0'}_{number}"

"""`StagesBackend`: servables whose methods are graphs of stages, in a pool of worker processes.

Loads one worker to learn the methods and keeps it for the first replica. A replica is a pool: instances of an execution
are spread over its idle workers and the results merged in order, so one large request uses them all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from millpond.serve.backends.model_files import ModelFiles
from millpond.serve.backends.spares import Spares
from millpond.serve.backends.splitting import Gathering, share_out
from millpond.serve.backends.stage_graph import LOADER, NUM_PARALLEL_WORKERS
from millpond.serve.backends.worker_instance import WorkerSurroundings, instance_name
from millpond.serve.servables.backend import ExecutionTiming, ModelFolder, Replies
from millpond.serve.servables.config import InstanceGroup, MethodSpec, ServableConfig
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest
from millpond.serve.servables.tensors import TensorSpec
from millpond.serve.workers.worker import Worker, WorkerSpec

DEFAULT_LOADER = "millpond.serving.loading:load_program"
MAX_WORKERS = 64


class StagesBackend:
    """Runs servables made of stages.

    Args:
        surroundings: Limits, and who answers calls of models.
    """

    name = "stages"

    def __init__(self, surroundings: WorkerSurroundings) -> None:
        self._surroundings = surroundings
        self._spares = Spares()

    async def complete(self, config: ServableConfig, folder: ModelFolder) -> ServableConfig:
        """Loads the servable once to learn its methods.

        Raises:
            ServableError: It cannot be loaded, or the configuration contradicts it.
        """
        files = _files(folder)
        worker = self._worker(config, files, folder, instance_name(config, InstanceGroup(""), 0))
        try:
            info = await worker.start()
            done = completed(config, info)
        except BaseException:
            await worker.close()
            if files is not None:
                files.close()
            raise
        if files is not None and folder.files:  # temporary files are made anew for every replica
            await worker.close()
            files.close()
        else:
            self._spares.keep(folder, worker)
        return done

    async def load(
        self, config: ServableConfig, folder: ModelFolder, group: InstanceGroup, number: int
    ) -> StagesInstance:
        """Starts a pool of workers.

        Raises:
            ServableError: The servable cannot be loaded.
        """
        files = _files(folder)
        name = instance_name(config, group, number)
        spare = self._spares.take(folder)
        workers = [] if spare is None else [spare]
        count = int(config.parameters[NUM_PARALLEL_WORKERS])
        fresh = [self._worker(config, files, folder, f"{name}.{index}") for index in range(len(workers), count)]
        try:
            started = await asyncio.gather(*(worker.start() for worker in fresh), return_exceptions=True)
            for result in started:
                if isinstance(result, BaseException):
                    raise result
        except BaseException:
            await asyncio.gather(*(worker.close() for worker in [*workers, *fresh]))
            if files is not None:
                files.close()
            raise
        return StagesInstance([*workers, *fresh], files, config)

    def _worker(self, config: ServableConfig, files: ModelFiles | None, folder: ModelFolder, name: str) -> Worker:
        arguments = {
            "loader": config.parameters.get(LOADER, DEFAULT_LOADER),
            "parameters": dict(config.parameters),
            "folder": "" if files is None else str(files.path),
            "version": folder.version,
        }
        return self._surroundings.worker(WorkerSpec(name, "stages", arguments, folder.version), config.name)


class StagesInstance:
    """A replica: a pool of workers that have the same servable loaded."""

    def __init__(self, workers: list[Worker], files: ModelFiles | None, config: ServableConfig) -> None:
        self.concurrency = len(workers)
        self.workers = workers
        self._files = files
        self._is_batched = config.max_batch_size > 0

    async def execute(self, requests: Sequence[InferRequest], replies: Replies) -> ExecutionTiming:
        """Runs the requests' instances on the idle workers; see `backend.Instance.execute`."""
        up = [worker for worker in self.workers if worker.is_up]
        if not up:
            raise ServableError("unavailable", "No worker process of the servable is running.")
        idle = [worker for worker in up if not worker.num_open] or [min(up, key=lambda worker: worker.num_open)]
        shares = share_out(requests, len(idle), is_batched=self._is_batched)
        if len(shares) == 1:
            return await idle[0].execute(requests, replies)
        gathering = Gathering(requests, shares, replies)
        timings = await asyncio.gather(
            *(
                worker.execute(share.requests, gathering.replies(share))
                for worker, share in zip(idle, shares, strict=False)
            ),
            return_exceptions=True,
        )
        for timing in timings:
            if isinstance(timing, BaseException):
                raise timing
        return max((timing for timing in timings if isinstance(timing, ExecutionTiming)), key=_total_ns)

    async def cancel(self, request: InferRequest) -> None:
        """Tells the workers that nobody waits for the request; parts of a split one are finished."""
        for worker in self.workers:
            worker.cancel(request)

    async def restart(self) -> None:
        """Starts those workers again that are down."""
        for worker in self.workers:
            if not worker.is_up:
                await worker.restart()

    async def close(self) -> None:
        """Ends all workers."""
        await asyncio.gather(*(worker.close() for worker in self.workers))
        if self._files is not None:
            self._files.close()


def completed(config: ServableConfig, info: dict[str, Any]) -> ServableConfig:
    """Returns the configuration with what the program says of itself.

    Raises:
        ServableError: The number of workers makes no sense.
    """
    methods = tuple(
        MethodSpec(
            method["name"],
            tuple(spec[0] for spec in method["inputs"]),
            tuple(spec[0] for spec in method["outputs"]),
            tuple(spec for spec in _specs(method["inputs"]) if spec.datatype),
            method["streams"],
            tuple(spec for spec in _specs(method["outputs"]) if spec.datatype),
            method["documentation"],
        )
        for method in info["methods"]
    )
    count = config.parameters.get(NUM_PARALLEL_WORKERS, "") or str(info["num_workers"])
    if not count.isdecimal() or not 1 <= int(count) <= MAX_WORKERS:
        raise ServableError(
            "invalid_argument", f"Parameter {NUM_PARALLEL_WORKERS} is '{count}'; it may be 1 to {MAX_WORKERS}."
        )
    first = info["methods"][0]
    inputs, outputs = _specs(first["inputs"]), _specs(first["outputs"])
    is_typed = all(spec.datatype for spec in (*inputs, *outputs))
    limit = info["max_batch_size"]
    return replace(
        config,
        inputs=inputs if is_typed else (),
        outputs=outputs if is_typed else (),
        max_batch_size=min(config.max_batch_size or limit, limit),
        methods=methods,
        decoupled=config.decoupled or first["streams"],
        parameters={**config.parameters, NUM_PARALLEL_WORKERS: count},
    )


def _specs(plain: list[list[Any]]) -> tuple[TensorSpec, ...]:
    return tuple(TensorSpec(name, datatype, tuple(dims), optional) for name, datatype, dims, optional in plain)


def _files(folder: ModelFolder) -> ModelFiles | None:
    return None if folder.path is None and not folder.files else ModelFiles(folder)


def _total_ns(timing: ExecutionTiming) -> int:
    return timing.compute_input_ns + timing.compute_infer_ns + timing.compute_output_ns

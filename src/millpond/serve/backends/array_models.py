"""`ArrayModelBackend`: models that are a function of whole batches of arrays; `onnx` and `torch` are made of it.

Joins the requests of an execution, sends one batch to the worker, and gives every request its rows. A model whose batch
size is fixed gets batches filled up to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from millpond.serve.backends.model_files import ModelFiles
from millpond.serve.backends.spares import Spares
from millpond.serve.backends.worker_instance import WorkerInstance, WorkerSurroundings, instance_name, start_instance
from millpond.serve.repository.triton_config import to_document
from millpond.serve.servables.backend import Ended, ExecutionTiming, Freed, ModelFolder, Replies
from millpond.serve.servables.batching.merge import merge, pad_rows, split
from millpond.serve.servables.config import DynamicBatching, InstanceGroup, ServableConfig
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.tensors import Tensor, TensorSpec
from millpond.serve.workers.worker import WorkerSpec

DEFAULT_MAX_BATCH_SIZE = 4  # what a model with a free batch dimension gets when nothing says more, as in Triton


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What a model file says of its tensors: with the batch dimension, -1 for any size. None where it does not say."""

    inputs: tuple[TensorSpec, ...] | None
    outputs: tuple[TensorSpec, ...] | None


class ArrayModelBackend:
    """A back end whose runner takes and gives named arrays.

    Args:
        name: What configurations call it.
        runner: A key of `runners.RUNNERS`.
        files: Names a model file may have, the preferred one first.
        surroundings: Limits of workers.
    """

    def __init__(self, name: str, runner: str, files: tuple[str, ...], surroundings: WorkerSurroundings) -> None:
        self.name = name
        self._runner = runner
        self._file_names = files
        self._surroundings = surroundings
        self._spares = Spares()

    async def complete(self, config: ServableConfig, folder: ModelFolder) -> ServableConfig:
        """Loads the model once and fills in inputs, outputs and batch size.

        Raises:
            ServableError: It cannot be loaded, or contradicts the configuration.
        """
        files = ModelFiles(folder)
        worker = self._surroundings.worker(
            self._spec(config, files, folder, instance_name(config, InstanceGroup(""), 0)), config.name
        )
        try:
            info = await worker.start()
            done = completed(config, ModelShape(_specs(info["inputs"]), _specs(info["outputs"])))
        except BaseException:
            await worker.close()
            files.close()
            raise
        if folder.files:  # temporary files are made anew for every replica
            await worker.close()
            files.close()
        else:
            self._spares.keep(folder, worker)
        return done

    async def load(
        self, config: ServableConfig, folder: ModelFolder, group: InstanceGroup, number: int
    ) -> ArrayModelInstance:
        """Starts a worker with the model in it.

        Raises:
            ServableError: It cannot be loaded.
        """
        files = ModelFiles(folder)
        spare = self._spares.take(folder)
        if spare is not None:
            return ArrayModelInstance(WorkerInstance(spare, files, 1), config)
        spec = self._spec(config, files, folder, instance_name(config, group, number))
        return ArrayModelInstance(await start_instance(self._surroundings.worker(spec, config.name), files), config)

    def _spec(self, config: ServableConfig, files: ModelFiles, folder: ModelFolder, name: str) -> WorkerSpec:
        arguments = {
            "file": str(self._find(config, files, folder.version)),
            "name": config.name,
            "parameters": dict(config.parameters),
            "inputs": [spec.name for spec in config.inputs],
            "outputs": [spec.name for spec in config.outputs],
        }
        return WorkerSpec(name, self._runner, arguments, folder.version)

    def _find(self, config: ServableConfig, files: ModelFiles, version: int) -> Path:
        names = (
            (config.default_model_filename, *self._file_names) if config.default_model_filename else self._file_names
        )
        for name in names:
            path = files.path / str(version) / name
            if path.exists() and path.resolve().is_relative_to(files.path):
                return path
        raise ServableError("internal", f"There is no file '{version}/{names[0]}' in model '{config.name}'.")


class ArrayModelInstance:
    """A replica of a model of arrays."""

    concurrency = 1
    queues_ahead = True

    def __init__(self, inner: WorkerInstance, config: ServableConfig) -> None:
        self._inner = inner
        self._config = config
        self._fixed_rows = int(config.parameters.get(FIXED_BATCH, "0"))

    async def execute(self, requests: Sequence[InferRequest], replies: Replies) -> ExecutionTiming:
        """Runs the requests as one batch; see `backend.Instance.execute`."""
        batch = _Batch(self._config, requests, self._fixed_rows)
        timing = await self._inner.execute([batch.whole], batch)
        batch.scatter(replies)
        return timing

    def begin(
        self, requests: Sequence[InferRequest], replies: Replies, ended: Ended, freed: Freed | None = None
    ) -> None:
        """See `backend.Beginner.begin`."""
        batch = _Batch(self._config, requests, self._fixed_rows)

        def finished(result: ExecutionTiming | ServableError) -> None:
            if not isinstance(result, ServableError):
                try:
                    batch.scatter(replies)
                except ServableError as error:
                    result = error
            ended(result)

        self._inner.begin([batch.whole], batch, finished, freed)

    async def cancel(self, request: InferRequest) -> None:
        """Does nothing: a batch that runs is finished."""

    async def restart(self) -> None:
        """Starts the process again."""
        await self._inner.restart()

    async def close(self) -> None:
        """Ends the process."""
        await self._inner.close()


FIXED_BATCH = "millpond.fixed_batch"


def completed(config: ServableConfig, shape: ModelShape) -> ServableConfig:
    """Returns the configuration with what the model's file says.

    Raises:
        ServableError: They contradict each other, or neither says what the inputs and outputs are.
    """
    if shape.inputs is None or shape.outputs is None:
        if not config.inputs or not config.outputs:
            raise ServableError(
                "internal",
                f"The file of model '{config.name}' does not say its inputs and outputs: name them in config.pbtxt.",
            )
        return config
    every = (*shape.inputs, *shape.outputs)
    first_sizes = {spec.dims[0] if spec.dims else 0 for spec in every}
    fixed = next(iter(first_sizes)) if len(first_sizes) == 1 and -1 not in first_sizes else 0
    max_batch_size = config.max_batch_size
    if not max_batch_size and not config.inputs and first_sizes == {-1}:
        max_batch_size = DEFAULT_MAX_BATCH_SIZE
    if max_batch_size and first_sizes != {-1} and fixed < max_batch_size:
        raise ServableError(
            "internal",
            f"model '{config.name}' does not support batching: max_batch_size is {max_batch_size}, but the first "
            f"dimensions of its tensors are {sorted(first_sizes)}",
        )
    is_batched = max_batch_size > 0
    done = replace(
        config,
        inputs=_complete(config, "input", config.inputs, shape.inputs, is_batched=is_batched),
        outputs=_complete(config, "output", config.outputs, shape.outputs, is_batched=is_batched),
        max_batch_size=max_batch_size,
        parameters={**config.parameters, FIXED_BATCH: str(fixed)} if is_batched and fixed else config.parameters,
    )
    if is_batched and not config.max_batch_size and config.sequence_batching is None:
        done = replace(done, dynamic_batching=config.dynamic_batching or DynamicBatching())
    return replace(done, document=None if config.document is None else to_document(done))


def _complete(
    config: ServableConfig, kind: str, known: tuple[TensorSpec, ...], seen: tuple[TensorSpec, ...], *, is_batched: bool
) -> tuple[TensorSpec, ...]:
    own = {spec.name: replace(spec, dims=spec.dims[1:] if is_batched else spec.dims) for spec in seen}
    if not known:
        return tuple(own.values())
    batch_inputs = {name for batch_input in config.batch_inputs for name in batch_input.names}
    for spec in known:
        model = own.get(spec.name)
        if model is None:
            raise ServableError(
                "internal",
                f"unexpected inference {kind} '{spec.name}', allowed {kind}s are: {', '.join(own)}",
            )
        if model.datatype != spec.datatype:
            raise ServableError(
                "internal",
                f"unable to load model '{config.name}', configuration expects datatype {spec.datatype} for {kind} "
                f"'{spec.name}', model provides {model.datatype}",
            )
        if not spec.ragged and not _agree(spec.reshape if spec.reshape is not None else spec.dims, model.dims):
            raise ServableError(
                "internal",
                f"model '{config.name}', tensor '{spec.name}': the model expects shape {list(model.dims)} but the "
                f"model configuration specifies shape {list(spec.dims)}",
            )
    missing = set(own) - {spec.name for spec in known} - batch_inputs
    if kind == "input" and missing:
        raise ServableError(
            "internal",
            f"model '{config.name}' has inputs that the configuration does not name: {', '.join(sorted(missing))}",
        )
    return known


def _agree(dims: Sequence[int], model: Sequence[int]) -> bool:
    return len(dims) == len(model) and all(
        -1 in (one, other) or one == other for one, other in zip(dims, model, strict=True)
    )


def _wanted(requests: Sequence[InferRequest]) -> tuple[str, ...] | None:
    wanted: dict[str, None] = {}
    for request in requests:
        if request.outputs is None:
            return None
        wanted.update(dict.fromkeys(request.outputs))
    return tuple(wanted)


def _specs(plain: list[list[Any]] | None) -> tuple[TensorSpec, ...] | None:
    return None if plain is None else tuple(TensorSpec(name, datatype, tuple(dims)) for name, datatype, dims in plain)


class _Batch:
    """Requests as one; takes its only response.

    Raises:
        ServableError: They cannot be joined.
    """

    def __init__(self, config: ServableConfig, requests: Sequence[InferRequest], fixed_rows: int) -> None:
        merged = merge(config, requests)
        inputs = merged.inputs
        if fixed_rows:
            inputs = {
                name: Tensor(name, tensor.datatype, pad_rows(tensor.array, fixed_rows))
                for name, tensor in inputs.items()
            }
        self.whole = msgspec.structs.replace(requests[0], inputs=inputs, outputs=_wanted(requests))
        self._config = config
        self._rows = merged.rows
        self._is_padded = bool(fixed_rows)
        self._response: InferResponse | None = None

    def send(self, index: int, response: InferResponse) -> None:
        self._response = response

    def cancelled(self, index: int) -> bool:
        return False

    def reschedule(self, index: int) -> None:
        raise ServableError("unsupported", "A batch of arrays cannot be rescheduled.")

    def scatter(self, replies: Replies) -> None:
        """Gives every request its rows of the response."""
        response = self._response
        if response is None:
            raise ServableError("internal", "The model gave no response.")
        if response.error is not None:
            raise response.error
        total = sum(self._rows)
        arrays = {
            name: tensor.array[:total] if self._is_padded else tensor.array for name, tensor in response.outputs.items()
        }
        for index, outputs in enumerate(split(self._config, arrays, self._rows)):
            replies.send(index, InferResponse(response.model, response.version, outputs))

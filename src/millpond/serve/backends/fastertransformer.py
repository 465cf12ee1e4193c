"""The back end `fastertransformer`: that back end's contract over our engine.

A folder with its `config.pbtxt` (and `config.ini`) answers `input_ids`, `input_lengths`, `request_output_len` and the
rest with `output_ids`, `sequence_length` and the rest, for every family that the engine runs. One engine process a
model; every row of a batch is one of its requests. What the tensors mean is in `ft_request` and `ft_output`.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections.abc import Sequence
from typing import cast

from millpond.api.request import Request
from millpond.config.schema import EngineConfig
from millpond.inference.engine.stream import OutputStream
from millpond.serve.backends.engine_model import Answer, EngineInstance, Reply, engine_config, start_engine
from millpond.serve.backends.ft_folder import complete_config, read_folder
from millpond.serve.backends.ft_output import Beam, make_outputs
from millpond.serve.backends.ft_progress import Progress
from millpond.serve.backends.ft_request import FtModel, FtRequest, FtRow, parse_request
from millpond.serve.gateway import Engine
from millpond.serve.servables.backend import ModelFolder
from millpond.serve.servables.config import InstanceGroup, ServableConfig
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.tensors import Tensor


class FasterTransformerBackend:
    """See the module.

    Args:
        base: Settings of every engine that a model does not set itself.
    """

    name = "fastertransformer"

    def __init__(self, base: EngineConfig | None = None) -> None:
        self._base = base or EngineConfig()

    async def complete(self, config: ServableConfig, folder: ModelFolder) -> ServableConfig:
        """Fills in the contract's tensors and checks that the folder can be served."""
        config = complete_config(config)
        await asyncio.to_thread(read_folder, config, folder)
        return config

    async def load(
        self, config: ServableConfig, folder: ModelFolder, group: InstanceGroup, number: int
    ) -> EngineInstance:
        """Starts the engine; there is one a model."""
        asked = await asyncio.to_thread(read_folder, config, folder)
        engine = await start_engine(engine_config(self._base, asked.settings, config.name), config.name)
        return EngineInstance(engine, FtAnswers(engine, config, folder.version, asked.end_id), folder.version)


class FtAnswers:
    """Answers requests of one model.

    Args:
        engine: Where rows run.
        config: Says whether answers are streamed.
        version: Of the servable.
        end_id: From config.ini; None takes the model's own.
    """

    def __init__(self, engine: Engine, config: ServableConfig, version: int, end_id: int | None) -> None:
        self._engine = engine
        self._name = config.name
        self._version = version
        self._is_decoupled = config.decoupled
        eos = engine.info.eos_token_ids
        own = end_id if end_id is not None else (eos[0] if eos else 0)
        self._model = FtModel(engine.info.vocab_size, own, is_own_end=end_id is not None)
        self._numbers = itertools.count()

    def __call__(self, requests: Sequence[InferRequest]) -> list[Answer]:
        """Returns the answers of requests that were merged into one batch."""
        parsed = [self._parse(request) for request in requests]
        good = [each for each in parsed if isinstance(each, FtRequest)]
        max_input = max((each.max_input for each in good), default=0)
        max_output = max((each.max_output for each in good), default=0)
        return [
            functools.partial(self._answer, request, each, max_input + max_output, max_output)
            for request, each in zip(requests, parsed, strict=True)
        ]

    def close(self) -> None:
        """Holds nothing beside the engine."""

    def _parse(self, request: InferRequest) -> FtRequest | ServableError:
        try:
            return parse_request(request.inputs, self._model)
        except ServableError as error:
            return error

    async def _answer(
        self, request: InferRequest, asked: FtRequest | ServableError, total_length: int, max_output: int, reply: Reply
    ) -> None:
        if isinstance(asked, ServableError):
            raise asked

        def send(beams: list[list[Beam]], is_last: bool) -> None:
            outputs = make_outputs(asked, beams, total_length, max_output)
            reply.send(InferResponse(self._name, self._version, _wanted(request, outputs), final=is_last))

        progress = Progress(asked, send, reply, each_token=self._is_decoupled)
        streams: dict[int, OutputStream] = {}
        tasks: list[asyncio.Task[None]] = []
        try:
            for index, row in enumerate(asked.rows):
                if row.num_tokens:
                    streams[index] = cast(OutputStream, self._engine.generate(self._request(request, row)))
            tasks += [asyncio.create_task(progress.follow(*item)) for item in streams.items()]
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            for stream in streams.values():
                await stream.aclose()
        await progress.end()

    def _request(self, request: InferRequest, row: FtRow) -> Request:
        return Request(f"{request.request_id or 'ft'}-{next(self._numbers)}", row.prompt, row.params)


def _wanted(request: InferRequest, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
    if request.outputs is None:
        return outputs
    return {name: tensor for name, tensor in outputs.items() if name in request.outputs}

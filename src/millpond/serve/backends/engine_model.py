"""Our own engine behind a servable: starting it for a model, and running requests on it.

Shared by the back ends `llm` and `fastertransformer`, which translate inputs and outputs. The engine batches by itself,
so an instance takes as many executions at a time as the engine takes sequences, and its requests do not wait for each
other. Does not know a tensor's name.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from millpond.api.request import ErrorInfo, OutputEvent
from millpond.base.errors import ConfigError, MillpondError, QueueFullError
from millpond.config.load import replace_settings
from millpond.config.schema import EngineConfig, ModelConfig, SpeculationConfig
from millpond.inference.engine.client import AsyncEngine
from millpond.serve.gateway import Engine
from millpond.serve.servables.backend import Ended, ExecutionTiming, Freed, ModelFolder, Paced, Replies
from millpond.serve.servables.config import ServableConfig
from millpond.serve.servables.errors import ErrorCode, ServableError
from millpond.serve.servables.messages import InferRequest, InferResponse

SETTING_PREFIX = "millpond."
RESTART_WAIT_S = 30.0
_CODES: dict[str, ErrorCode] = {
    "invalid_request": "invalid_argument",
    "context_length_exceeded": "invalid_argument",
    "model_not_found": "not_found",
    "queue_full": "unavailable",
    "engine_dead": "unavailable",
    "deadline_exceeded": "unavailable",
    "cancelled": "cancelled",
}


class Reply:
    """Where the responses of one request go; a `Room`."""

    __slots__ = ("_index", "_replies", "_room")

    def __init__(self, replies: Replies, index: int) -> None:
        self._replies = replies
        self._index = index
        self._room = replies.room(index) if isinstance(replies, Paced) else None

    @property
    def is_full(self) -> bool:
        return self._room is not None and self._room.is_full

    async def drained(self) -> None:
        if self._room is not None:
            await self._room.drained()

    def send(self, response: InferResponse) -> None:
        """Passes a response on."""
        self._replies.send(self._index, response)


Answer = Callable[[Reply], Coroutine[Any, Any, None]]


class Answers(Protocol):
    """What a back end does with one execution."""

    def __call__(self, requests: Sequence[InferRequest]) -> Sequence[Answer]:
        """Returns what sends the responses of each request, the last one final.

        An answer may raise `ServableError` or `MillpondError`, which becomes its request's only or last response. It is
        cancelled when nobody waits for it any more.
        """

    def close(self) -> None:
        """Frees what it holds beside the engine."""


class EngineInstance:
    """A servable's only replica.

    Args:
        engine: Where requests run.
        answers: Translates them.
        version: Of the servable.
        is_shared: Whether someone else uses the engine too and closes it.
    """

    def __init__(self, engine: Engine, answers: Answers, version: int, *, is_shared: bool = False) -> None:
        self.engine = engine
        self.concurrency = engine.info.max_sequences + engine.info.max_queue
        self._answers = answers
        self._version = version
        self._is_shared = is_shared
        self._log = logging.getLogger(__name__)
        self._running: dict[int, asyncio.Task[None]] = {}  # by the identity of the request

    def begin(
        self, requests: Sequence[InferRequest], replies: Replies, ended: Ended, freed: Freed | None = None
    ) -> None:
        """Answers every request; an error of one is that one's response."""
        del freed  # requests do not wait for each other
        began_ns = time.monotonic_ns()
        answers = self._answers(requests)
        prepared_ns = time.monotonic_ns()
        num_left = len(requests)

        def done(index: int, task: asyncio.Task[None]) -> None:
            nonlocal num_left
            request = requests[index]
            self._running.pop(id(request), None)
            if task.cancelled():
                self._fail(index, request, ServableError("cancelled", "The request was cancelled."), replies)
            num_left -= 1
            if not num_left:
                ended(ExecutionTiming(prepared_ns - began_ns, time.monotonic_ns() - prepared_ns))

        for index, (request, answer) in enumerate(zip(requests, answers, strict=True)):
            task = asyncio.create_task(self._run(index, request, answer, replies))
            self._running[id(request)] = task
            task.add_done_callback(functools.partial(done, index))

    async def execute(self, requests: Sequence[InferRequest], replies: Replies) -> ExecutionTiming:
        """Answers every request, and returns when all are answered."""
        timing: asyncio.Future[ExecutionTiming] = asyncio.get_running_loop().create_future()

        def ended(result: ExecutionTiming | ServableError) -> None:
            if not timing.done() and isinstance(result, ExecutionTiming):
                timing.set_result(result)

        self.begin(requests, replies, ended)
        try:
            return await timing
        finally:
            for request in requests:
                await self.cancel(request)

    async def cancel(self, request: InferRequest) -> None:
        """Stops a request and frees what it holds in the engine."""
        task = self._running.get(id(request))
        if task is not None:
            task.cancel()

    async def restart(self) -> None:
        """Waits for the engine, which its supervisor starts again by itself."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(RESTART_WAIT_S):
                while self.engine.state != "ready":
                    if self.engine.state == "closed":
                        break
                    await asyncio.sleep(0.05)
        if self.engine.state != "ready":
            raise ServableError("unavailable", "The engine process is not back yet.")

    async def close(self) -> None:
        """Ends the engine if this servable started it."""
        for task in list(self._running.values()):
            task.cancel()
        self._answers.close()
        if not self._is_shared:
            with contextlib.suppress(Exception):
                await self.engine.close()

    async def _run(self, index: int, request: InferRequest, answer: Answer, replies: Replies) -> None:
        try:
            await answer(Reply(replies, index))
            return
        except (ServableError, MillpondError) as error:
            failure = as_servable_error(error)
        except Exception as error:  # a bug in one request's translation must not end the others
            self._log.exception("A request to %s failed.", request.model)
            failure = ServableError("internal", f"The request failed with {type(error).__name__}.")
        self._fail(index, request, failure, replies)

    def _fail(self, index: int, request: InferRequest, failure: ServableError, replies: Replies) -> None:
        replies.send(index, InferResponse(request.model, self._version, error=failure))


def as_servable_error(error: ServableError | MillpondError) -> ServableError:
    """Returns an error of the engine in the words of servables."""
    if isinstance(error, ServableError):
        return error
    retry_after_s = error.retry_after_s if isinstance(error, QueueFullError) else None
    return ServableError(_CODES.get(error.code, "internal"), str(error), retry_after_s=retry_after_s)


def check_event(event: OutputEvent) -> None:
    """Raises `ServableError` for an event that says that its sequence failed."""
    if event.error is not None:
        raise event_error(event.error)


def event_error(error: ErrorInfo) -> ServableError:
    """Returns what is raised for an error event."""
    return ServableError(_CODES.get(error.code, "internal"), error.message)


def check_single_instance(config: ServableConfig) -> None:
    """Raises `ServableError` when a configuration asks for several replicas of an engine."""
    if sum(group.count for group in config.instance_groups if not group.passive) > 1:
        raise ServableError(
            "invalid_argument",
            f"Model '{config.name}' asks for several instances; its engine is one process that runs many requests at a "
            "time. Set count to 1 in instance_group, or leave instance_group out.",
        )


def engine_config(base: EngineConfig, settings: Mapping[str, object], name: str) -> EngineConfig:
    """Returns the engine's configuration for a model.

    Args:
        base: What the server was started with: cache, scheduler and machine of every engine that does not say its own.
            What it says of a model is about the model that it names.
        settings: The model's own, by path ("cache.bytes").
        name: The servable's name.

    Raises:
        ServableError: A setting is not known or out of range.
    """
    try:
        return replace_settings(_without_model(base), {"model.served_name": name, **settings})
    except ConfigError as error:
        raise ServableError("invalid_argument", f"Model '{name}': {error}") from error


def _without_model(base: EngineConfig) -> EngineConfig:
    """The settings that hold for any model: a draft model fits one."""
    mode = None if base.speculation.mode == "draft" else base.speculation.mode
    speculation = SpeculationConfig(mode, base.speculation.max_tokens)
    return replace(base, model=ModelConfig(), speculation=speculation)


def settings_of(config: ServableConfig) -> dict[str, object]:
    """Returns the engine settings among a configuration's parameters: `millpond.cache.bytes` sets `cache.bytes`."""
    return {
        key.removeprefix(SETTING_PREFIX): value
        for key, value in config.parameters.items()
        if key.startswith(SETTING_PREFIX)
    }


async def start_engine(config: EngineConfig, name: str) -> AsyncEngine:
    """Starts an engine for a servable.

    Raises:
        ServableError: It cannot be loaded; the text names no path above the model's own folder.
    """
    try:
        return await AsyncEngine.start(config)
    except (MillpondError, MemoryError) as error:
        code: ErrorCode = "unavailable" if isinstance(error, MemoryError) else "invalid_argument"
        text = _without_path(str(error) or "There is not enough memory.", config.model.path)
        raise ServableError(code, f"Model '{name}' cannot be loaded: {text}") from error


def find_model(named: str, folder: ModelFolder) -> str:
    """Returns what a folder's files call the model: a path beside them, an absolute path, or a name of the catalog."""
    if folder.path is not None and named and not Path(named).is_absolute():
        for place in (folder.path / str(folder.version), folder.path):
            inside = (place / named).resolve()
            if inside.is_relative_to(folder.path.resolve()) and inside.exists():
                return str(inside)
    return named


def read_folder_file(folder: ModelFolder, name: str) -> bytes | None:
    """Returns a file of the version's folder, as it came with the load request or as it is on disk; None without it.

    Raises:
        ServableError: It is there and cannot be read.
    """
    given = folder.files.get(f"{folder.version}/{name}")
    if given is not None or folder.path is None:
        return given
    try:
        return (folder.path / str(folder.version) / name).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ServableError("invalid_argument", f"{folder.version}/{name} cannot be read: {error.strerror}.") from error


def _without_path(text: str, path: str | None) -> str:
    return text.replace(path, Path(path).name) if path else text

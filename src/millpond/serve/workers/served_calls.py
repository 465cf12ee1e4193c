"""`ServedCalls`: answers what a worker's model asks of the gateway: runs of other servables, and the repository.

One for every worker process; it ends with it. Every call is a task on the event loop, and there is a bound on them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

from millpond.serve.servables.config import ServableConfig
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest, InferResponse, SequenceRef
from millpond.serve.servables.tensors import TensorSpec
from millpond.serve.workers import wire
from millpond.serve.workers.calls import ServableCalls
from millpond.serve.workers.process import WorkerProcess

MAX_OPEN_CALLS = 1024


class ServedCalls:
    """The open calls of one worker process.

    Args:
        calls: Who answers them; None answers everything with an error.
        process: Where answers go.
    """

    def __init__(self, calls: ServableCalls | None, process: WorkerProcess) -> None:
        self._calls = calls
        self._process = process
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._log = logging.getLogger(__name__)

    def start(self, call: wire.Call) -> None:
        """Runs a request on a servable."""
        self._spawn(call.call, self._stream(call))

    def ask(self, ask: wire.Ask) -> None:
        """Answers a question."""
        self._spawn(ask.call, self._answer(ask))

    def cancel(self, number: int) -> None:
        """Ends a call whose responses nobody waits for."""
        if (task := self._tasks.get(number)) is not None:
            task.cancel()

    def close(self) -> None:
        """Ends all."""
        for task in self._tasks.values():
            task.cancel()

    def _spawn(self, number: int, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[number] = task

        def ended(_: asyncio.Task[None]) -> None:
            self._tasks.pop(number, None)
            if not task.cancelled() and (error := task.exception()) is not None:
                self._log.error("A call of a model could not be answered.", exc_info=error)

        task.add_done_callback(ended)

    async def _stream(self, call: wire.Call) -> None:
        try:
            if len(self._tasks) > MAX_OPEN_CALLS:
                raise ServableError("unavailable", f"A model may have {MAX_OPEN_CALLS} open calls of other models.")
            responses = self._required().stream(self._request_of(call.request))
            try:
                final = False
                async for response in responses:
                    final = response.final
                    self._reply(call.call, response)
                    await self._process.drained()
                if not final:
                    self._reply(call.call, InferResponse("", 0))
            finally:
                if (close := getattr(responses, "aclose", None)) is not None:
                    await close()
        except ServableError as error:
            self._reply(call.call, InferResponse("", 0, error=error))
        except Exception:
            self._reply(call.call, InferResponse("", 0, error=_broken()))
            raise  # to the log

    async def _answer(self, ask: wire.Ask) -> None:
        try:
            answer = wire.Answer(ask.call, await self._value(ask.what, ask.arguments))
        except ServableError as error:
            answer = wire.Answer(ask.call, None, wire.ErrorWire(error.code, error.message))
        except Exception:
            self._process.send(wire.Answer(ask.call, None, wire.ErrorWire("internal", _broken().message)))
            raise  # to the log
        self._process.send(answer)

    async def _value(self, what: str, arguments: dict[str, Any]) -> Any:
        calls = self._required()
        match what:
            case "describe":
                return described(calls.describe(arguments["name"], arguments["version"]))
            case "ready":
                return calls.is_ready(arguments["name"], arguments["version"])
            case "load":
                return await calls.load(arguments["name"], arguments["config"], arguments["files"])
            case "unload":
                return await calls.unload(arguments["name"])
        raise ServableError("unsupported", f"A model cannot ask for '{what}'.")

    def _required(self) -> ServableCalls:
        if self._calls is None:
            raise ServableError("unsupported", "Models cannot call other models here.")
        return self._calls

    def _request_of(self, request: wire.RequestWire) -> InferRequest:
        tensors = [self._process.tensors.unpack(part) for part in request.inputs]
        sequence = None
        if request.key:
            sequence = SequenceRef(
                request.key,
                start=bool(request.flags & wire.FLAG_SEQUENCE_START),
                end=bool(request.flags & wire.FLAG_SEQUENCE_END),
            )
        return InferRequest(
            model=request.model,
            inputs={tensor.name: tensor for tensor in tensors},
            version=None if request.version < 0 else request.version,
            method=request.method,
            request_id=request.request_id,
            outputs=request.outputs,
            parameters=request.parameters,
            priority=request.priority,
            timeout_us=request.timeout_us,
            sequence=sequence,
        )

    def _reply(self, number: int, response: InferResponse) -> None:
        tensors = self._process.tensors
        outputs = [tensors.pack(tensor) for tensor in response.outputs.values()]
        error = None if response.error is None else wire.ErrorWire(response.error.code, response.error.message)
        packed = wire.ResponseWire(0, outputs, response.parameters, error, response.final)
        try:
            self._process.send(wire.CallReply(number, packed, tensors.reader.take_freed()))
        except ValueError as too_large:
            tensors.discard(outputs)
            refused = wire.ErrorWire("internal", f"The response cannot be passed on: {too_large}.")
            self._process.send(wire.CallReply(number, wire.ResponseWire(0, [], {}, refused)))


def _broken() -> ServableError:
    return ServableError("internal", "The call could not be answered; the server's log says why.")


def described(config: ServableConfig) -> dict[str, Any]:
    """Returns what a worker needs to know to call a servable."""

    def plain(specs: tuple[TensorSpec, ...]) -> list[list[Any]]:
        return [[spec.name, spec.datatype, list(spec.dims), spec.optional] for spec in specs]

    return {
        "inputs": plain(config.inputs),
        "outputs": plain(config.outputs),
        "max_batch_size": config.max_batch_size,
        "methods": {method.name: [list(method.inputs), list(method.outputs)] for method in config.methods},
        "decoupled": config.decoupled,
    }

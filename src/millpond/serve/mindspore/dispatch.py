"""`Dispatcher`: sends a call's instances to a servable, each on its own, and puts the results in order.

So the client's list is never a model's batch: batches form anew from all waiting instances of all clients, and any
replica takes any of them. Instances whose worker died are sent again. Bounds how many calls are open. Used by both
ports; knows neither wire.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import aclosing
from typing import Any, cast

from millpond.serve.mindspore import plain
from millpond.serve.mindspore.calls import (
    FAILED,
    INVALID_INPUTS,
    SERVABLE_UNAVAILABLE,
    SYSTEM_ERROR,
    Call,
    CallError,
    Failure,
    Instance,
    Result,
    Text,
    check_instances,
)
from millpond.serve.mindspore.values import from_tensor, to_tensor
from millpond.serve.room import Room
from millpond.serve.servables.config import MethodSpec, ServableConfig
from millpond.serve.servables.errors import ErrorCode, ServableError
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.registry import Servables

MAX_ENQUEUED_REQUESTS = 10_000
_MAX_ATTEMPTS = 3  # an instance that kills every worker it meets must end
_CODES: dict[ErrorCode, int] = {
    "invalid_argument": INVALID_INPUTS,
    "not_found": INVALID_INPUTS,
    "unsupported": INVALID_INPUTS,
    "unavailable": SERVABLE_UNAVAILABLE,
    "internal": FAILED,
}
_log = logging.getLogger("millpond.serve.mindspore")


class Dispatcher:
    """Runs calls.

    Args:
        servables: The registry.
        max_enqueued_requests: Most open calls.
        timeout_s: Longest time a call may take; None leaves it to the registry's limits.

    Attributes:
        max_enqueued_requests: May be changed at any time.
        num_open: Calls that are open now.
        draining: Refuses new calls while true.
    """

    def __init__(
        self,
        servables: Servables,
        *,
        max_enqueued_requests: int = MAX_ENQUEUED_REQUESTS,
        timeout_s: float | None = None,
    ) -> None:
        self.max_enqueued_requests = max_enqueued_requests
        self.num_open = 0
        self.draining = False
        self._servables = servables
        self._timeout_s = timeout_s
        self._suspects: dict[str, asyncio.Lock] = {}  # by servable: instances whose worker died go one at a time

    async def predict(self, call: Call) -> list[Result]:
        """Returns each instance's outputs, or why it has none.

        Raises:
            CallError: The call as a whole failed.
        """
        self._enter()
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._predict(call)
        except TimeoutError:
            raise CallError(SYSTEM_ERROR, "Serving Error: request timed out", status=503) from None
        finally:
            self.num_open -= 1

    async def pour(self, call: Call, write: Callable[[Result | Text], None], room: Room) -> None:
        """Gives the results of the only instance of a call to `write` where they come about; returns after the last.

        Cancelling it cancels the request.

        Args:
            call: The call.
            write: Takes a result, and never waits.
            room: What it fills; nothing is written while this is full.

        Raises:
            CallError: The call is not accepted; nothing was written.
            Exception: What `write` raised.
        """
        self._enter()
        try:
            config = self._find(call)
            if len(call.instances) != 1:
                raise CallError(INVALID_INPUTS, "A stream is for one instance; send a request for each")
            method = _find_method(config, call.method)
            request = self._request(call, self._check(call, method)[0], config, method)
            is_plain = _is_plain(method)

            def take(response: InferResponse) -> None:
                if response.error is not None:
                    write(_to_failure(response.error))
                elif response.outputs:
                    write((is_plain and plain.read_text(response)) or _read(response, config, method))

            await self._servables.pour(request, take, room)
        except ServableError as error:
            raise _to_call_error(error) from None
        finally:
            self.num_open -= 1

    def streams(self, call: Call) -> bool:
        """Whether a call's method is one that answers as a stream."""
        try:
            config = self._servables.find(call.servable, call.version or None).config
        except ServableError:
            return False
        method = _find_method(config, call.method)
        return call.method in plain.STREAM_METHODS if method is None else method.streams

    def _enter(self) -> None:
        if self.draining:
            raise CallError(SERVABLE_UNAVAILABLE, "Serving Error: the server is stopping", status=503)
        if self.num_open >= self.max_enqueued_requests:
            raise CallError(
                FAILED,
                f"Serving Error: enqueued requests count exceeds the limit {self.max_enqueued_requests}",
                status=503,
            )
        self.num_open += 1

    def _find(self, call: Call) -> ServableConfig:
        try:
            config = self._servables.find(call.servable, call.version or None).config
        except ServableError:
            raise CallError(
                INVALID_INPUTS, f"Request {call.describe()}, servable is not available", status=404
            ) from None
        is_plain = not config.methods and call.method in plain.METHODS + plain.STREAM_METHODS
        if not is_plain and _find_method(config, call.method) is None:
            raise CallError(INVALID_INPUTS, f"Request {call.describe()}, method is not available", status=404)
        return config

    async def _predict(self, call: Call) -> list[Result]:
        config = self._find(call)
        method = _find_method(config, call.method)
        instances = self._check(call, method)
        requests = [self._request(call, instance, config, method) for instance in instances]
        return await _gather([self._run(request, config, method) for request in requests])

    def _check(self, call: Call, method: MethodSpec | None) -> list[Instance]:
        if method is None:
            check_instances(call, ())
            return call.instances
        optional = frozenset(spec.name for spec in method.specs if spec.optional)
        return check_instances(call, method.inputs, optional)

    def _request(
        self, call: Call, instance: Instance, config: ServableConfig, method: MethodSpec | None
    ) -> InferRequest:
        if method is None:
            return plain.make_plain_request(call, instance, config)
        typed = {spec.name: spec for spec in method.specs}
        inputs = {
            name: plain.make_tensor(value, typed[name], has_batch=False) if name in typed else to_tensor(name, value)
            for name, value in instance.items()
        }
        return InferRequest(call.servable, inputs, version=call.version or None, method=call.method)

    async def _run(self, request: InferRequest, config: ServableConfig, method: MethodSpec | None) -> Result:
        try:
            return await self._run_once(request, config, method)
        except ServableError as error:
            if not _died(error):
                return _to_failure(error)
            _log.warning("an instance for servable %s is sent again: %s", request.model, error.message)
        # One of the instances of that execution may have killed it. Alone, it takes no other with it once more.
        async with self._suspects.setdefault(request.model, asyncio.Lock()):
            for attempt in range(2, _MAX_ATTEMPTS + 1):
                try:
                    return await self._run_once(request, config, method)
                except ServableError as error:
                    if not _died(error) or attempt == _MAX_ATTEMPTS:
                        return _to_failure(error)
        raise AssertionError("unreachable")

    async def _run_once(self, request: InferRequest, config: ServableConfig, method: MethodSpec | None) -> Result:
        request.arrived_ns = 0
        if config.decoupled if method is None else method.streams:
            return await self._collect(request, config, method)
        return _read(await self._servables.infer(request), config, method)

    async def _collect(self, request: InferRequest, config: ServableConfig, method: MethodSpec | None) -> Result:
        parts: list[Instance] = []
        async with aclosing(self._open(request)) as responses:
            async for response in responses:
                if response.error is not None:
                    raise response.error
                if response.outputs:
                    parts.append(_read(response, config, method))
        return plain.join_responses(parts)

    def _open(self, request: InferRequest) -> AsyncGenerator[InferResponse, None]:
        return cast("AsyncGenerator[InferResponse, None]", self._servables.stream(request))


async def _gather(runs: list[Coroutine[Any, Any, Result]]) -> list[Result]:
    if len(runs) == 1:
        return [await runs[0]]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(run) for run in runs]
    return [task.result() for task in tasks]


def _find_method(config: ServableConfig, name: str) -> MethodSpec | None:
    return next((method for method in config.methods if method.name == name), None)


def _died(error: ServableError) -> bool:
    """Whether the worker died under a request: one that was refused has a time to come again."""
    return error.code == "unavailable" and error.retry_after_s is None


def _read(response: InferResponse, config: ServableConfig, method: MethodSpec | None) -> Instance:
    if _is_plain(method):
        return plain.read_plain_response(response, has_batch=method is None and config.max_batch_size > 0)
    return {name: from_tensor(tensor) for name, tensor in response.outputs.items()}


def _is_plain(method: MethodSpec | None) -> bool:
    return method is None or bool(method.specs)


def _to_failure(error: ServableError) -> Failure:
    return Failure(_CODES.get(error.code, FAILED), error.message)


def _to_call_error(error: ServableError) -> CallError:
    status = {"invalid_argument": 400, "not_found": 404, "unavailable": 503}.get(error.code, 500)
    return CallError(_CODES.get(error.code, FAILED), error.message, status=status)

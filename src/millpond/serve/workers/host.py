"""`Host`: a worker process as its runner and the model's code see it.

Holds what is open (batches that wait, calls of other servables, answers), turns arrays into messages, and offers what
the model may do besides answering: call servables, ask the repository, log, publish metrics. Calls may come from any
thread of the model. Knows no model format.
"""

from __future__ import annotations

import itertools
import socket
import threading
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any, cast

from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import Parameter
from millpond.serve.servables.tensors import Tensor
from millpond.serve.workers import wire
from millpond.serve.workers.channel import Channel
from millpond.serve.workers.execution import Execution
from millpond.serve.workers.reshapes import Reshapes
from millpond.serve.workers.tensor_wire import TensorPort


class CallResponse:
    """A response of another servable to a call."""

    __slots__ = ("error", "final", "outputs", "parameters")

    def __init__(self, response: wire.ResponseWire, outputs: list[Tensor]) -> None:
        self.outputs = outputs
        self.parameters = response.parameters
        self.error = response.error
        self.final = response.final


class Host:
    """The one object of a worker process that talks to the gateway.

    Args:
        sock: The socket to the gateway.
        name: The servable's name with its instance, for messages.
    """

    def __init__(self, sock: socket.socket, name: str) -> None:
        self.name = name
        self.reshapes: Reshapes | None = None
        self._channel = Channel(sock, self._take)
        self._tensors: TensorPort = cast(TensorPort, None)  # comes with `attach`, before any tensor
        self._tensors_lock = threading.Lock()
        self._hello: wire.Hello | None = None
        self._batches: deque[Execution] = deque()
        self._open: dict[int, Execution] = {}
        self._calls: dict[int, deque[wire.ResponseWire]] = {}
        self._answers: dict[int, wire.Answer] = {}
        self._call_ids = itertools.count(1)
        self._closing = False

    def wait_for_hello(self) -> wire.Hello:
        """Returns the first message."""
        self._channel.wait(lambda: self._hello is not None)
        assert self._hello is not None
        return self._hello

    def attach(self, port: TensorPort) -> None:
        """Tells where tensors travel; before the first of them does."""
        self._tensors = port

    def next_execution(self) -> Execution | None:
        """Waits for the next batch; None when the process is to end."""
        try:
            if not self._batches:
                self._channel.wait(self._has_work)
        except ConnectionError:
            return None
        return self._batches.popleft() if self._batches else None

    def poll(self) -> None:
        """Takes in what has arrived, such as a cancel."""
        self._channel.poll()

    def send(self, message: wire.FromWorker) -> None:
        """Sends a message that holds no tensors."""
        self._channel.send(message)

    def reply(
        self,
        execution: Execution,
        responses: list[wire.ResponseWire],
        *,
        done: bool,
        failure: wire.ErrorWire | None = None,
    ) -> None:
        """Sends what an execution has to say; called by the execution itself, under its lock."""
        number = execution.number
        if done:
            self._open.pop(number, None)
        freed = self._freed() if self._tensors.reader.has_freed else []
        began_ns, ended_ns = execution.began_ns, execution.ended_ns
        try:
            self._channel.send(wire.Replies(number, responses, done, failure, began_ns, ended_ns, freed))
        except ValueError as error:
            with self._tensors_lock:
                self._tensors.discard(part for response in responses for part in response.outputs)
            failure = wire.ErrorWire("internal", f"The response of '{self.name}' cannot be sent: {error}.")
            self._channel.send(wire.Replies(number, [], True, failure))

    def pack(self, tensors: Sequence[Tensor], wanted: Sequence[str] | None = None) -> list[wire.TensorWire]:
        """Returns tensors ready to be sent; with `wanted`, only those of these names."""
        packed = []
        with self._tensors_lock:
            for tensor in tensors:  # a comprehension would be one more call
                if wanted is None or tensor.name in wanted:
                    packed.append(self._tensors.pack(tensor))
        return packed

    def unpack(self, parts: Sequence[wire.TensorWire]) -> list[Tensor]:
        """Returns tensors that came."""
        unpack, tensors = self._tensors.unpack, []
        for part in parts:
            tensors.append(unpack(part))
        return tensors

    def call(self, request: wire.RequestWire, inputs: Sequence[Tensor]) -> Generator[CallResponse, None, None]:
        """Runs a request on another servable and yields its responses; closing the iterator cancels it.

        Raises:
            ConnectionError: The gateway is gone.
        """
        number = next(self._call_ids)
        arrived: deque[wire.ResponseWire] = deque()
        self._calls[number] = arrived
        final = False
        try:
            packed = wire.RequestWire(
                request.model,
                self.pack(inputs),
                request.request_id,
                request.outputs,
                request.parameters,
                request.key,
                request.flags,
                request.timeout_us,
                request.priority,
                request.version,
                request.method,
            )
            self._channel.send(wire.Call(number, packed, self._freed()))
            while not final:
                self._channel.wait(lambda: bool(arrived))
                response = arrived.popleft()
                final = response.final
                yield CallResponse(response, self.unpack(response.outputs))
        finally:
            del self._calls[number]
            if not final and not self._channel.is_closed:
                self._channel.send(wire.CallCancel(number))

    def ask(self, what: str, arguments: dict[str, Any]) -> Any:
        """Asks the registry or the repository: "describe", "ready", "load" or "unload".

        Raises:
            ServableError: As it was raised in the gateway.
        """
        number = next(self._call_ids)
        self._channel.send(wire.Ask(number, what, arguments))
        self._channel.wait(lambda: number in self._answers)
        answer = self._answers.pop(number)
        if answer.error is not None:
            raise ServableError(answer.error.code, answer.error.message)
        return answer.value

    def publish(self, update: wire.MetricUpdate) -> None:
        """Publishes a metric of the model."""
        self._channel.send(update)

    def log(self, level: int, text: str) -> None:
        """Writes to the gateway's log."""
        self._channel.send(wire.Log(level, text))

    def _has_work(self) -> bool:
        return bool(self._batches) or self._closing

    def _freed(self) -> list[int]:
        return self._tensors.reader.take_freed()

    def _release(self, offsets: list[int]) -> None:
        if offsets:
            with self._tensors_lock:
                self._tensors.release(offsets)

    def _take(self, message: wire.ToWorker) -> None:
        if type(message) is wire.Execute:  # as nearly all are
            if message.freed:
                self._release(message.freed)
            execution = self._open[message.execution] = Execution(self, message)
            self._batches.append(execution)
            return
        match message:
            case wire.Cancel():
                if (execution_or_none := self._open.get(message.execution)) is not None:
                    execution_or_none.cancel(message.index)
            case wire.CallReply():
                self._release(message.freed)
                if (arrived := self._calls.get(message.call)) is not None:
                    arrived.append(message.response)
                else:  # cancelled meanwhile: looking at the tensors and dropping them gives their places back
                    self.unpack(message.response.outputs)
            case wire.Answer():
                self._answers[message.call] = message
            case wire.Freed():
                self._release(message.offsets)
            case wire.Hello():
                self._hello = message
            case wire.Close():
                self._closing = True


def request_wire(model: str, **fields: Any) -> wire.RequestWire:
    """Returns a request without inputs, for `Host.call`."""
    return wire.RequestWire(model, [], **fields)


def parameters_of(values: dict[str, Parameter] | None) -> dict[str, Parameter]:
    """Returns parameters for a message.

    Raises:
        ValueError: One of them is no bool, int, float or str.
    """
    for name, value in (values or {}).items():
        if not isinstance(value, bool | int | float | str):
            raise ValueError(f"parameter '{name}' is of type {type(value).__name__}; it may be bool, int, float or str")
    return dict(values or {})

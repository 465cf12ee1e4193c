"""`Execution`: one batch inside the worker: its requests, who gave up, and the responses on their way out.

A runner answers with `respond`. Responses are kept until `flush` or `finish`, so that a batch is one message; a stream
flushes after every response. May be used by several threads of the model, and after `finish` as long as requests are
open.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from millpond.serve.servables.messages import Parameter
from millpond.serve.servables.tensors import Tensor
from millpond.serve.workers import wire

if TYPE_CHECKING:
    from millpond.serve.workers.host import Host


class Execution:
    """A batch that a runner executes."""

    __slots__ = (
        "_cancelled",
        "_closed",
        "_finished",
        "_host",
        "_lock",
        "_open",
        "_responses",
        "began_ns",
        "ended_ns",
        "number",
        "requests",
    )

    def __init__(self, host: Host, message: wire.Execute) -> None:
        self._host = host
        self.number = message.execution
        self.requests = message.requests
        self.began_ns = 0
        self.ended_ns = 0
        self._open = set(range(len(message.requests)))
        self._cancelled: set[int] | tuple[()] = ()
        self._responses: list[wire.ResponseWire] = []
        self._finished = False
        self._closed = False
        self._lock = threading.Lock()

    def begin(self) -> None:
        """Notes when the model's code starts."""
        self.began_ns = time.monotonic_ns()

    def inputs(self, index: int) -> list[Tensor]:
        """Returns a request's tensors; a large one is on shared memory until it is dropped."""
        host = self._host
        tensors = host.unpack(self.requests[index].inputs)
        return tensors if host.reshapes is None else host.reshapes.of_inputs(tensors)

    def is_open(self, index: int) -> bool:
        """Whether the request has no final response yet."""
        return index in self._open

    def is_cancelled(self, index: int) -> bool:
        """Whether nobody waits for the request any more."""
        if index not in self._cancelled:
            self._host.poll()
        return index in self._cancelled

    def cancel(self, index: int) -> None:
        """Notes that nobody waits for a request."""
        self._cancelled = {*self._cancelled, index}

    def respond(
        self,
        index: int,
        outputs: Sequence[Tensor] = (),
        *,
        parameters: dict[str, Parameter] | None = None,
        error: wire.ErrorWire | None = None,
        final: bool = True,
    ) -> None:
        """Adds a response; outputs that the request did not ask for are left out.

        Raises:
            ValueError: The request has had its final response.
        """
        wanted, host = self.requests[index].outputs, self._host
        if host.reshapes is not None:
            outputs = host.reshapes.of_outputs(outputs)
        with self._lock:
            if index not in self._open:
                raise ValueError("the request has already had its final response")
            packed = host.pack(outputs, wanted) if outputs else []
            self._responses.append(wire.ResponseWire(index, packed, parameters or {}, error, final))
            if final:
                self._open.discard(index)

    def reschedule(self, index: int) -> None:
        """Ends the request's part in this batch; it comes again in a later one.

        Raises:
            ValueError: The request has had its final response.
        """
        with self._lock:
            if index not in self._open:
                raise ValueError("the request has already had its final response")
            self._responses.append(wire.ResponseWire(index, [], again=True))
            self._open.discard(index)

    def flush(self) -> None:
        """Sends the responses that wait; the last ones of a finished batch close it."""
        with self._lock:
            done = self._finished and not self._open and not self._closed
            if self._responses or done:
                self._closed = done
                responses, self._responses = self._responses, []
                self._host.reply(self, responses, done=done)

    def finish(self) -> None:
        """Notes that the model's code has returned; requests that are still open may be answered later."""
        self.ended_ns = time.monotonic_ns()
        self._finished = True
        self.flush()

    def fail(self, error: wire.ErrorWire) -> None:
        """Ends the batch: what is still open gets this error."""
        with self._lock:
            self.ended_ns = time.monotonic_ns()
            self._finished = True
            self._open.clear()
            if not self._closed:
                self._closed = True
                responses, self._responses = self._responses, []
                self._host.reply(self, responses, done=True, failure=error)

"""`Worker`: a model in a process of its own, as a back end's instance uses it.

Sends batches and passes their responses on, both directly on the event loop; stops a process that says nothing for too
long; and turns the end of a process into an error of what it was doing. `restart` brings a new process up. Knows no
model format: the runner's name and arguments come from the back end.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from millpond.serve.servables.backend import Ended, ExecutionTiming, Freed, Replies
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.workers import wire
from millpond.serve.workers.calls import ServableCalls
from millpond.serve.workers.lookout import Lookout
from millpond.serve.workers.process import WorkerProcess
from millpond.serve.workers.served_calls import ServedCalls


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """Bounds of every worker process.

    Attributes:
        load_timeout_s: How long a model may take to load.
        silence_timeout_s: How long an execution may go without a word; then the process is stopped. 0 is for ever.
        exit_timeout_s: How long a model may take to finish when it is unloaded.
        inline_bytes: A tensor of at most so many bytes travels in the message, a larger one in shared memory.
        arena_bytes: Address space for tensors in flight, each way; only what is used takes memory.
    """

    load_timeout_s: float = 600.0
    silence_timeout_s: float = 300.0
    exit_timeout_s: float = 10.0
    inline_bytes: int = 16 << 10
    arena_bytes: int = 16 << 30


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What a worker runs.

    Attributes:
        name: The servable's, with its instance: for errors and the log.
        runner: A key of `runners.RUNNERS`.
        arguments: For the runner; msgpack types only.
        version: The servable's, for responses.
    """

    name: str
    runner: str
    arguments: dict[str, Any] = field(default_factory=dict)
    version: int = 0


class _Open(msgspec.Struct, eq=False):
    """An execution that the worker has not finished."""

    requests: Sequence[InferRequest]
    replies: Replies
    ended: Ended
    freed: Freed | None
    began_ns: int


class Worker:
    """One replica of a model in its own process.

    Args:
        spec: What it runs.
        limits: How long it may take, and how its tensors travel.
        calls: Answers what the model asks of the gateway; None answers with an error.
        on_metric: Told of every metric that the model publishes.
    """

    def __init__(
        self,
        spec: WorkerSpec,
        limits: WorkerLimits,
        calls: ServableCalls | None = None,
        on_metric: Callable[[wire.MetricUpdate], None] | None = None,
    ) -> None:
        self._spec = spec
        self._version = spec.version
        self._limits = limits
        self._calls = calls
        self._on_metric = on_metric
        self._log = logging.getLogger(__name__)
        self._process: WorkerProcess | None = None
        self._served: ServedCalls | None = None
        self._ready: asyncio.Future[dict[str, Any]] | None = None
        self._open: dict[int, _Open] = {}
        self._numbers = itertools.count(1)
        self._heard_at = 0.0
        self._last_ended_ns = 0
        self._lookout = Lookout(lambda: len(self._open) == 1)
        self._watch: asyncio.TimerHandle | None = None
        self._down_reason = "has not been started"
        self._endings: set[asyncio.Task[Any]] = set()

    @property
    def pid(self) -> int | None:
        """The process's id while there is one."""
        return None if self._process is None else self._process.pid

    @property
    def is_up(self) -> bool:
        """Whether it can execute."""
        return self._process is not None and self._ready is not None and self._ready.done()

    @property
    def num_open(self) -> int:
        """How many executions it has not finished."""
        return len(self._open)

    async def start(self) -> dict[str, Any]:
        """Starts the process, waits until the model is loaded, and returns what its runner says about it.

        Raises:
            ServableError: It cannot be loaded.
        """
        process = WorkerProcess(self._spec.name, self._on_message, self._lost)
        self._process, self._served = process, ServedCalls(self._calls, process)
        self._ready = asyncio.get_running_loop().create_future()
        try:
            await process.start(self._limits.inline_bytes, self._limits.arena_bytes)
            process.send(
                wire.Hello(
                    self._spec.name,
                    self._spec.runner,
                    self._spec.arguments,
                    self._limits.inline_bytes,
                    self._limits.arena_bytes,
                )
            )
            async with asyncio.timeout(self._limits.load_timeout_s):
                return await self._ready
        except TimeoutError:
            await self._stop(0.0, "took too long to load")
            text = f"'{self._spec.name}' did not load within {self._limits.load_timeout_s:g} seconds."
            raise ServableError("internal", text) from None
        except OSError as error:
            await self._stop(0.0, "could not be started")
            raise ServableError(
                "unavailable", f"No process could be started for '{self._spec.name}': {error}."
            ) from None
        except BaseException:
            await self._stop(0.0, "could not be loaded")
            raise

    async def execute(self, requests: Sequence[InferRequest], replies: Replies) -> ExecutionTiming:
        """Runs a batch; see `backend.Instance.execute`."""
        future: asyncio.Future[ExecutionTiming | ServableError] = asyncio.get_running_loop().create_future()

        def ended(result: ExecutionTiming | ServableError) -> None:
            if not future.done():
                future.set_result(result)

        number = self.begin(requests, replies, ended)
        try:
            result = await future
        except asyncio.CancelledError:
            self._open.pop(number, None)
            if self._process is not None:
                for index in range(len(requests)):
                    self._process.send(wire.Cancel(number, index))
            raise
        if isinstance(result, ServableError):
            raise result
        return result

    def begin(
        self, requests: Sequence[InferRequest], replies: Replies, ended: Ended, freed: Freed | None = None
    ) -> int:
        """Runs a batch; see `backend.Beginner.begin`. Returns the execution's number."""
        began_ns = time.monotonic_ns()
        process, ready = self._process, self._ready
        if process is None or ready is None or not ready.done():
            raise ServableError("unavailable", f"The process of '{self._spec.name}' {self._down_reason}.")
        number = next(self._numbers)
        tensors = process.tensors
        packed = []
        for request in requests:  # a comprehension would be one more call
            packed.append(tensors.pack_request(request))
        message = wire.Execute(number, packed, tensors.reader.take_freed() if tensors.reader.has_freed else [])
        is_busy = bool(self._open)
        try:
            if is_busy:  # what else comes in this turn of the loop may go along
                process.send(message)
            else:
                process.send_now(message)
        except ValueError as error:
            tensors.discard(part for request in packed for part in request.inputs)
            raise ServableError(
                "invalid_argument", f"The request is too large for '{self._spec.name}': {error}."
            ) from None
        self._open[number] = _Open(requests, replies, ended, freed, began_ns)
        if self._watch is None:
            self._start_watch()
        if not is_busy:
            self._lookout.begin(began_ns)
        return number

    def _timing(self, began_ns: int, last: wire.Replies) -> ExecutionTiming:
        ended_ns = time.monotonic_ns()
        # What was sent while another execution ran has waited for its end; both clocks are the machine's.
        model_began_ns, model_ended_ns = last.began_ns, last.ended_ns
        free_ns, self._last_ended_ns = self._last_ended_ns, model_ended_ns
        if began_ns <= free_ns or not began_ns <= model_began_ns <= model_ended_ns <= ended_ns:
            waited_ns = max(min(free_ns, model_began_ns) - began_ns, 0)
            infer_ns = max(model_ended_ns - model_began_ns, 0)
            input_ns = max(model_began_ns - began_ns - waited_ns, 0)
            output_ns = max(ended_ns - began_ns - waited_ns - infer_ns - input_ns, 0)
            return ExecutionTiming(input_ns, infer_ns, output_ns, waited_ns)
        return ExecutionTiming(model_began_ns - began_ns, model_ended_ns - model_began_ns, ended_ns - model_ended_ns, 0)

    def lend(self, num_bytes: int) -> NDArray[np.uint8] | None:
        """Returns a place where the process can read what is written there; see `backend.Lender`."""
        return None if self._process is None or not self.is_up else self._process.tensors.loans.lend(num_bytes)

    def cancel(self, request: InferRequest) -> None:
        """Tells the model that nobody waits for a request."""
        for number, opened in self._open.items():
            for index, candidate in enumerate(opened.requests):
                if candidate is request and self._process is not None:
                    self._process.send(wire.Cancel(number, index))

    async def restart(self) -> None:
        """Ends the process if there is one and starts another.

        Raises:
            ServableError: It cannot be loaded any more.
        """
        await self._stop(0.0, "is being started again")
        await self.start()

    async def close(self) -> None:
        """Lets the model finish, then ends the process."""
        if self._process is not None and self.is_up:
            self._process.send(wire.Close())
        await self._stop(self._limits.exit_timeout_s, "was unloaded")

    def _on_message(self, process: WorkerProcess, message: wire.FromWorker) -> None:
        if process is not self._process:
            return  # its executions have ended already
        assert self._served is not None
        self._heard_at = time.monotonic()
        if type(message) is wire.Replies:  # as nearly all are
            if message.freed:
                process.tensors.release(message.freed)
            self._on_replies(message, process)
            return
        match message:
            case wire.Call():
                process.tensors.release(message.freed)
                self._served.start(message)
            case wire.CallCancel():
                self._served.cancel(message.call)
            case wire.Ask():
                self._served.ask(message)
            case wire.Log():
                self._log.log(message.level, "%s: %s", self._spec.name, message.text)
            case wire.MetricUpdate():
                if self._on_metric is not None:
                    self._on_metric(message)
            case wire.Freed():
                process.tensors.release(message.offsets)
            case wire.Ready():
                if self._ready is not None and not self._ready.done():
                    self._ready.set_result(message.info)
            case wire.LoadFailed():
                if self._ready is not None and not self._ready.done():
                    self._ready.set_exception(ServableError(message.error.code, message.error.message))

    def _on_replies(self, message: wire.Replies, process: WorkerProcess) -> None:
        opened = self._open.get(message.execution)
        if opened is not None and opened.freed is not None and message.done:
            opened.freed()
            process.flush()  # the next batch is on its way before this one's responses are
        unpack, version = process.tensors.unpack, self._version
        for response in message.responses:
            outputs = {}
            for part in response.outputs:
                outputs[part.name] = unpack(part)
            if opened is None:  # nobody waits any more: dropping the tensors gives their places back
                continue
            index, error = response.index, None
            if response.again:
                opened.replies.reschedule(index)
                continue
            if response.error is not None:
                error = ServableError(response.error.code, response.error.message)
            model = opened.requests[index].model
            opened.replies.send(
                index, InferResponse(model, version, outputs, response.parameters, response.final, error)
            )
        if message.done and opened is not None:
            del self._open[message.execution]
            self._lookout.ended(opened.began_ns, was_alone=not self._open)
            if message.failure is not None:
                opened.ended(ServableError(message.failure.code, message.failure.message))
            else:
                opened.ended(self._timing(opened.began_ns, message))

    def _start_watch(self) -> None:
        if self._watch is None and self._limits.silence_timeout_s:
            self._heard_at = time.monotonic()
            self._watch_again(self._limits.silence_timeout_s)

    def _watch_again(self, delay_s: float) -> None:
        self._watch = asyncio.get_running_loop().call_later(delay_s, self._look)

    def _look(self) -> None:
        self._watch = None
        if not self._open or self._process is None:
            return
        left_s = self._heard_at + self._limits.silence_timeout_s - time.monotonic()
        if left_s > 0:
            self._watch_again(left_s)
            return
        text = f"gave no sign for {self._limits.silence_timeout_s:g} seconds and was stopped"
        self._log.error("The process of '%s' %s.", self._spec.name, text)
        self._down(text)

    def _lost(self, process: WorkerProcess) -> None:
        if process is self._process:
            ending = asyncio.get_running_loop().create_task(self._ended(process))
            self._endings.add(ending)
            ending.add_done_callback(self._endings.discard)

    async def _ended(self, process: WorkerProcess) -> None:
        """Says how a process ended whose socket closed by itself."""
        how = await process.reap(grace_s=1.0)
        if process is self._process:
            self._log.error("The process of '%s' %s.", self._spec.name, how)
            self._down(how)

    def _down(self, reason: str) -> None:
        """Ends the process and everything that waits for it."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            reaping = asyncio.get_running_loop().create_task(process.reap(0.0))
            self._endings.add(reaping)
            reaping.add_done_callback(self._endings.discard)
        self._fail_open(reason)

    def _fail_open(self, reason: str) -> None:
        self._down_reason = reason
        if self._served is not None:
            self._served.close()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._ready is not None and not self._ready.done():
            self._ready.set_exception(ServableError("internal", f"'{self._spec.name}' {reason} while it was loading."))
        while self._open:
            opened = self._open.pop(next(iter(self._open)))
            opened.ended(ServableError("unavailable", f"The process of '{self._spec.name}' {reason}."))

    async def _stop(self, grace_s: float, reason: str) -> None:
        process, self._process = self._process, None
        self._fail_open(reason)
        if process is not None:
            if not grace_s:
                process.kill()
            await process.reap(grace_s)
        await asyncio.gather(*self._endings, return_exceptions=True)
        if self._ready is not None and self._ready.done() and not self._ready.cancelled():
            self._ready.exception()  # seen, whether or not somebody waited for it
        self._ready = None

"""`Servable`: one version of a model that requests can be sent to.

Checks requests, counts them, gives them to its scheduler, and passes responses on. Owns its replicas and its state;
does not know how it was loaded (`loading.py`), which other versions there are (`registry.py`), or any protocol.
"""

from __future__ import annotations

import asyncio
import time
from typing import Literal
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from millpond.serve.servables.backend import Lender
from millpond.serve.servables.batching.endings import queue_full
from millpond.serve.servables.batching.scheduler import Scheduler
from millpond.serve.servables.cache import ResponseCache, key_of
from millpond.serve.servables.calls import Answer, Call, Inbox, Sink
from millpond.serve.servables.checking import RequestChecker
from millpond.serve.servables.config import ServableConfig
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.replicas import Replica
from millpond.serve.servables.shared import Shared
from millpond.serve.servables.statistics import FailureReason, ServableStatistics

ServableState = Literal["READY", "UNAVAILABLE", "LOADING", "UNLOADING"]


class Servable:
    """One version of a servable.

    Args:
        config: Complete.
        version: Its number.
        shared: What all servables of the registry share.
    """

    def __init__(self, config: ServableConfig, version: int, shared: Shared) -> None:
        self.name = config.name
        self.version = version
        self.config = config
        self.state: ServableState = "LOADING"
        self.reason = ""
        self.refusal: ServableError | None = None  # while all instances are down for longer
        self.statistics = ServableStatistics(config.name, version)
        self.clock = shared.clock
        self.replicas: list[Replica] = []
        self._lender: Lender | None = None
        self._limits = shared.limits
        has_one_answer = not (config.decoupled or config.sequence_batching or config.ensemble)
        self._cache = shared.cache if config.response_cache and has_one_answer else None
        self._is_decoupled = config.decoupled
        self._cache_tag = uuid4().bytes  # of this load: what an earlier one answered may not be true any more
        self._checker = RequestChecker(config)
        self._scheduler: Scheduler | None = None
        self._num_open = 0
        self._drained: asyncio.Future[None] | None = None

    @property
    def scheduler(self) -> Scheduler:
        """Who decides when calls run; set by `start`."""
        assert self._scheduler is not None
        return self._scheduler

    @property
    def num_open(self) -> int:
        """Calls without their final response, and holds."""
        return self._num_open

    def start(self, scheduler: Scheduler, replicas: list[Replica]) -> None:
        """Begins to take requests."""
        self._scheduler = scheduler
        self.statistics.count_pending = lambda: scheduler.num_waiting
        self.replicas = replicas
        instance = replicas[0].instance if len(replicas) == 1 and self.config.sequence_batching is None else None
        self._lender = instance if isinstance(instance, Lender) else None
        self.state = "READY"

    def hold(self) -> None:
        """Keeps the servable from being freed until `release`, although it may be removed meanwhile."""
        self._num_open += 1

    def release(self) -> None:
        """Ends a `hold`."""
        self._close_one()

    def lend(self, num_bytes: int) -> NDArray[np.uint8] | None:
        """Returns a place for the tensors of a request that is still coming; None when it may as well be anywhere.

        Only where one instance is sure to get the request, and once: it may change its inputs.
        """
        return None if self._lender is None else self._lender.lend(num_bytes)

    def check(self, request: InferRequest) -> None:
        """Raises what is wrong with a request's tensors beside the configuration.

        Raises:
            ServableError: The request does not fit; code "invalid_argument".
        """
        if not request.method:
            self._checker.check(request)

    def submit(self, request: InferRequest, sink: Sink, *, depth: int = 0) -> Call:
        """Takes a request; its responses go to `sink`.

        Raises:
            ServableError: The request does not fit the configuration, or there is no room for it.
        """
        if self.state == "UNAVAILABLE":
            raise self.refusal or self._gone()
        now_ns = self.clock()
        if not request.arrived_ns:
            request.arrived_ns = now_ns
        # A named method's tensors are the back end's to check: the configuration describes the default one.
        alike, checker = request.alike, self._checker
        if request.method:
            rows = 1
        elif alike is not None and alike.checker is checker:
            rows = alike.rows
        else:
            rows = checker.check(request)
        call = Call(request, rows, sink)
        call.accepted_ns = now_ns
        call.depth = depth
        if request.trace is not None:
            request.trace.begin(self.name, self.version, request.request_id, now_ns)
            request.trace.tensors("TENSOR_QUEUE_INPUT", request.inputs.values())
        if self._cache is not None and self._answer_from(self._cache, call):
            return call
        scheduler = self._scheduler
        assert scheduler is not None
        try:
            if scheduler.num_waiting >= self._limits.max_waiting:
                raise queue_full(call)
            self._num_open += 1
            try:
                scheduler.submit(call)
            except ServableError:
                self._close_one()
                raise
        except ServableError as error:
            if request.trace is not None:
                request.trace.end(self.clock())
            if error.code == "unavailable":
                self.statistics.add_failure(self.clock() - request.arrived_ns, "REJECTED")
            raise
        return call

    async def infer(self, request: InferRequest) -> InferResponse:
        """Answers a request with its one response.

        Raises:
            ServableError: It cannot be answered.
        """
        if self.config.decoupled:
            raise ServableError(
                "unsupported", f"model '{self.name}' has a decoupled transaction policy: ask for a stream"
            )
        future: asyncio.Future[InferResponse] = asyncio.get_running_loop().create_future()
        call = self.submit(request, Answer(future))
        try:
            return await future
        except asyncio.CancelledError:
            self.cancel(call)
            raise

    def open(self, request: InferRequest) -> tuple[Call, Inbox]:
        """Takes a request whose responses are read one by one.

        Raises:
            ServableError: It is not accepted.
        """
        inbox = Inbox(self._limits.max_unread_responses)
        return self.submit(request, inbox), inbox

    def cancel(self, call: Call) -> None:
        """Nobody waits for the call any more: takes it out of the queue, or tells its instance."""
        if call.done or call.was_cancelled:
            return
        call.was_cancelled = True
        if self.scheduler.discard(call):
            self._end(call, "CANCELED")
        elif call.replica is not None:
            call.replica.cancel(call)

    def fail(self, call: Call, error: ServableError, reason: FailureReason = "REJECTED") -> None:
        """Ends a call that was not executed."""
        if not call.done:
            self._end(call, reason)
            own = ServableError(error.code, error.message, retry_after_s=error.retry_after_s)
            call.sink.respond(InferResponse(self.name, self.version, error=own))

    def deliver(self, call: Call, response: InferResponse) -> None:
        """Passes a response of an execution on."""
        if call.done:
            return
        if self._is_decoupled:
            self._count_response(call, response)
        trace = call.request.trace
        if trace is not None:
            trace.tensors("TENSOR_BACKEND_OUTPUT", response.outputs.values())
        call.num_responses += 1
        if response.final:
            if call.was_cancelled:
                self._end(call, "CANCELED")
            elif response.error is not None:
                self._end(call, "BACKEND")
            else:
                self._end(call, None)
                if call.cache_key is not None and self._cache is not None and not response.parameters:
                    began_ns = time.perf_counter_ns()
                    self._cache.put(call.cache_key, response.outputs)
                    self.statistics.cache_miss.add(time.perf_counter_ns() - began_ns)
        if not call.was_cancelled:
            call.sink.respond(response)

    def replica_changed(self) -> None:
        """A replica went down or came up: decides whether requests are welcome."""
        if self.state not in ("READY", "UNAVAILABLE"):
            return
        refusal: ServableError | None = None
        if all(replica.is_down for replica in self.replicas):
            refusal = next((replica.refusal for replica in self.replicas if replica.refusal), None)
        self.refusal = refusal
        if refusal is None:
            self.state, self.reason = "READY", ""
            self.scheduler.poke()
        else:
            self.state, self.reason = "UNAVAILABLE", refusal.message
            self.scheduler.fail_waiting(refusal)

    async def drain(self) -> bool:
        """Waits until all accepted calls are over; False when that takes longer than the limit."""
        self.state = "UNLOADING"
        deadline_ns = self.clock() + int(self._limits.drain_s * 1e9)
        while self._num_open or not self.scheduler.is_idle:
            left_s = (deadline_ns - self.clock()) / 1e9
            if left_s <= 0:
                return False
            self._drained = asyncio.get_running_loop().create_future()
            if not self._num_open:
                left_s = min(left_s, 0.25)  # only open sequences are left; they end by themselves
            await asyncio.wait((self._drained,), timeout=left_s)
        return True

    async def close(self) -> None:
        """Frees everything; what is still open is answered with an error."""
        self.scheduler.fail_waiting(self._gone())
        self.scheduler.close()
        await asyncio.gather(*(replica.close() for replica in self.replicas))
        self.replicas = []
        self._lender = None
        self.state = "UNAVAILABLE"

    def _gone(self) -> ServableError:
        return ServableError("unavailable", f"model '{self.name}' version {self.version} was unloaded")

    def _count_response(self, call: Call, response: InferResponse) -> None:
        now_ns = self.clock()
        since_ns = now_ns - (call.answered_ns or call.started_ns)
        call.answered_ns = now_ns
        self.statistics.add_response(call.num_responses, since_ns, response, was_cancelled=call.was_cancelled)

    def _answer_from(self, cache: ResponseCache, call: Call) -> bool:
        began_ns = time.perf_counter_ns()
        call.cache_key = key_of(call.request, self._cache_tag)
        outputs = cache.get(call.cache_key)
        if outputs is None:
            return False
        call.done = True
        if call.request.trace is not None:
            call.request.trace.end(self.clock())
        self.statistics.add_hit(self.clock() - call.request.arrived_ns, time.perf_counter_ns() - began_ns)
        call.sink.respond(InferResponse(self.name, self.version, outputs))
        return True

    def _end(self, call: Call, failure: FailureReason | None) -> None:
        call.done = True
        if call.request.trace is not None:
            call.request.trace.end(self.clock())
        if failure is not None:
            self.statistics.add_failure(self.clock() - call.request.arrived_ns, failure)
        self._num_open -= 1
        if not self._num_open and self._drained is not None:
            self._tell_drained(self._drained)

    def _close_one(self) -> None:
        self._num_open -= 1
        if not self._num_open and self._drained is not None:
            self._tell_drained(self._drained)

    def _tell_drained(self, drained: asyncio.Future[None]) -> None:
        if not drained.done():
            drained.set_result(None)

"""`Execution`: what is known of one batch while an instance has it, from its first response to the books.

Passes responses on, remembers which requests were answered well, fails or gives back the rest, and counts. A replica
makes one for every batch; instances see it as their `Replies`. Knows neither queues nor processes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from millpond.serve.room import Room
from millpond.serve.servables.backend import ExecutionTiming
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferResponse

if TYPE_CHECKING:
    from millpond.serve.servables.calls import Call
    from millpond.serve.servables.replicas import Replica
    from millpond.serve.servables.statistics import ServableStatistics


class Source(Protocol):
    """Where replicas get their calls: a servable's scheduler."""

    def take(self, replica: Replica) -> list[Call]:
        """What `replica` is to execute now; empty when it has to wait until it is woken."""

    def ended(self, replica: Replica, calls: list[Call]) -> None:
        """The calls that `take` gave were executed."""

    def outgoing(self, call: Call, response: InferResponse) -> InferResponse:
        """What of a response goes to the client."""

    def again(self, call: Call) -> bool:
        """Takes a call back that its instance wants to execute once more; False when this is not possible."""

    def returned(self, call: Call) -> bool:
        """Takes a call back that its instance died before executing; False when this is not possible."""


class Host(Protocol):
    """What a replica needs of the servable it belongs to."""

    statistics: ServableStatistics

    def deliver(self, call: Call, response: InferResponse) -> None:
        """Passes a response on; after a final one the call is over."""

    def replica_changed(self) -> None:
        """A replica went down or came up."""

    def clock(self) -> int:
        """Nanoseconds of a clock that only goes forward."""


class Execution:
    """The `Replies` of one execution.

    Attributes:
        calls: What is executed.
        rows: How many in all.
        was_freed: Whether its model is done, with responses still to come.

    Args:
        calls: What is executed.
        replica: Who executes.
        source: Where the calls are from.
        host: The servable.
        rows: Of all calls.
    """

    __slots__ = ("_again", "_host", "_replica", "_source", "calls", "rows", "was_freed")

    def __init__(self, calls: list[Call], replica: Replica, source: Source, host: Host, rows: int) -> None:
        self.calls = calls
        self.rows = rows
        self.was_freed = False
        self._replica = replica
        self._source = source
        self._host = host
        self._again: set[int] | tuple[()] = ()

    def freed(self) -> None:
        """The instance could begin another; see `backend.Beginner`."""
        if not self.was_freed:
            self.was_freed = True
            self._replica.freed()

    def ended(self, result: ExecutionTiming | ServableError) -> None:
        """The instance is done with it."""
        self._replica.ended(self, result)

    def send(self, index: int, response: InferResponse) -> None:
        """See `backend.Replies`."""
        call = self.calls[index]
        if call.done or call.is_null or index in self._again:
            return
        response = self._source.outgoing(call, response)
        wanted = call.request.outputs
        if wanted is not None and len(response.outputs) > len(wanted):
            response.outputs = {name: tensor for name, tensor in response.outputs.items() if name in wanted}
        host = self._host
        if response.final and response.error is None and not call.was_cancelled:
            call.succeeded_ns = host.clock()
        host.deliver(call, response)

    def cancelled(self, index: int) -> bool:
        """See `backend.Replies`."""
        return self.calls[index].was_cancelled

    def room(self, index: int) -> Room | None:
        """See `backend.Paced`."""
        sink = self.calls[index].sink
        return sink if isinstance(sink, Room) else None

    def reschedule(self, index: int) -> None:
        """See `backend.Replies`."""
        call = self.calls[index]
        if not call.done and not call.is_null:
            self._again = {*self._again, index}

    def has_rest(self) -> bool:
        """Whether a call has no final response."""
        for call in self.calls:  # noqa: SIM110 - a generator takes longer, and mostly there is one
            if not call.done:
                return True
        return False

    def fail_rest(self, error: ServableError) -> None:
        """Ends the calls without a final response."""
        for index, call in enumerate(self.calls):
            if call.done or call.is_null:
                continue
            if index in self._again and (not call.started_ns or self._source.again(call)):
                continue
            # Each request gets an error of its own: raising one object in many tasks would mix their tracebacks.
            own = ServableError(error.code, error.message, retry_after_s=error.retry_after_s)
            self._host.deliver(call, self._source.outgoing(call, failed(self._host, own)))

    def give_back(self) -> None:
        """Returns what was not begun to where it came from."""
        for index, call in enumerate(self.calls):
            if not (call.done or call.was_cancelled or call.num_responses) and self._source.returned(call):
                self._again = {*self._again, index}

    def account(self, timing: ExecutionTiming) -> None:
        """Counts what was answered."""
        count = rows = total_ns = queue_ns = 0
        for call in self.calls:
            request = call.request
            if ended_ns := call.succeeded_ns:
                arrived_ns = request.arrived_ns
                count += 1
                rows += call.rows
                total_ns += ended_ns - arrived_ns
                queue_ns += call.started_ns - arrived_ns
            trace = request.trace
            if trace is not None:
                now_ns = self._host.clock()
                trace.computed(call.started_ns, timing, call.succeeded_ns or now_ns, now_ns)
                trace.release()
        if count:
            queue_ns += timing.waited_ns * count
            self._host.statistics.add_success(rows, total_ns, queue_ns, timing, count)


def broken() -> ServableError:
    """Returns the error of an instance that raised what it should not."""
    return ServableError("internal", "The servable's back end failed; the server's log says why.")


def failed(host: Host, error: ServableError) -> InferResponse:
    """Returns a response that is an error."""
    return InferResponse(host.statistics.name, host.statistics.version, error=error)

"""`Call`: a request that was accepted, from the queue to its final response.

Owns nothing but its own marks; the servable counts it, a scheduler decides when it runs, a replica runs it, and its
sink hands the responses to whoever asked. All on the event loop's thread.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

import msgspec

from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest, InferResponse

_ENOUGH = 64  # responses that nobody has read yet; a back end that can wait, waits


class Sink(Protocol):
    """Takes the responses of one call, in order. Called on the event loop; must not raise."""

    def respond(self, response: InferResponse) -> None: ...


class Runner(Protocol):
    """Executes a call."""

    def cancel(self, call: Call) -> None: ...


class Call(msgspec.Struct, eq=False):
    """One accepted request.

    Attributes:
        request: As it was checked.
        rows: Its batch size, at least 1.
        sink: Who gets the responses.
        accepted_ns: When it was.
        answered_ns: When its last response came.
        started_ns: When it began to be executed; 0 while it waits.
        succeeded_ns: When an execution gave its final response, which was no error.
        deadline_ns: When its wait ends; 0 is never.
        num_responses: So far.
        num_rounds: Executions, of one that is executed again and again.
        depth: How many ensembles it is inside of.
        done: Its final response was given, or nobody waits for one.
        was_cancelled: Nobody waits for it.
        is_delayed: Its timeout passed and its policy lets it wait behind the others.
        is_null: Fills a slot of a sequence batch; nobody waits for it.
        replica: Who executes it.
        cache_key: Of its answer.
        shape_key: Calls of one batch have the same.
    """

    request: InferRequest
    rows: int
    sink: Sink
    accepted_ns: int = 0
    answered_ns: int = 0
    started_ns: int = 0
    succeeded_ns: int = 0
    deadline_ns: int = 0
    num_responses: int = 0
    num_rounds: int = 0
    depth: int = 0
    done: bool = False
    was_cancelled: bool = False
    is_delayed: bool = False
    is_null: bool = False
    replica: Runner | None = None
    cache_key: bytes | None = None
    shape_key: object = None


class Answer:
    """The sink of a call with one response."""

    __slots__ = ("future",)

    def __init__(self, future: asyncio.Future[InferResponse]) -> None:
        self.future = future

    def respond(self, response: InferResponse) -> None:
        future = self.future
        if future.done():
            return
        if response.error is not None:
            future.set_exception(response.error)
        else:
            future.set_result(response)


class Inbox:
    """The sink of a call whose responses are read one by one.

    Args:
        limit: Most responses left unread.
    """

    __slots__ = ("_limit", "_responses", "_taken", "_waiter", "overflowed")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._responses: deque[InferResponse] = deque()
        self._taken = asyncio.Event()
        self._waiter: asyncio.Future[None] | None = None
        self.overflowed = False

    def respond(self, response: InferResponse) -> None:
        if self.overflowed:
            return
        if len(self._responses) >= self._limit:
            self.overflowed = True
            response = overflow(response, self._limit)
        self._responses.append(response)
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def is_full(self) -> bool:
        """Whether a back end that can wait should; see `Room`."""
        return len(self._responses) >= min(_ENOUGH, self._limit)

    async def drained(self) -> None:
        """See `Room`."""
        while self.is_full:
            self._taken.clear()
            await self._taken.wait()

    async def next(self) -> InferResponse:
        """Waits for the next response. One reader at a time."""
        while not self._responses:
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._taken.set()
        return self._responses.popleft()


def overflow(response: InferResponse, limit: int) -> InferResponse:
    """Returns what a client gets in place of a response when it left too many unread."""
    error = ServableError("unavailable", f"More than {limit} responses were not read; read faster.")
    return InferResponse(response.model, response.version, error=error)

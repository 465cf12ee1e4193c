"""`Generation`: the engine's work for one client call, which is one request per prompt.

Merges the events of its requests, turns failed sequences into exceptions, counts tokens for the usage block and feeds
the metrics. Streams take events by `pour`, in the turn of the event loop in which a step's tokens arrive; whole answers
iterate. Closing it cancels whatever still runs. Every protocol adapter reads events through it, and it knows none.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from time import perf_counter
from typing import Protocol

from millpond.api.request import ErrorInfo, OutputEvent, Request
from millpond.base.errors import CancelledError, DeadlineError, MillpondError
from millpond.inference.engine.messages import typed_error
from millpond.inference.engine.stream import RequestStream
from millpond.serve.gateway import Engine
from millpond.serve.metrics import ServeMetrics
from millpond.serve.pouring import pour
from millpond.serve.room import Room

_FAILURES = ("error", "cancelled", "deadline")
_QUEUED_EVENTS = 64  # of all prompts of a call together; a full queue leaves events in the engine's client


class Outlet(Room, Protocol):
    """Where a stream's bytes go."""

    def write(self, data: bytes) -> None:
        """Sends bytes, or keeps them to be sent. Does nothing once the client is gone."""
        ...


Write = Callable[[int, OutputEvent], None]


class Generation:
    """Runs requests and yields their events.

    Args:
        engine: Where to run them.
        metrics: Told of times and tokens.
        requests: One per prompt; all have the same `n`.
        arrived_s: `perf_counter` when the call came in.

    Attributes:
        prompt_tokens: Of all prompts, each counted once.
        output_tokens: Given so far, over all choices.
        cached_tokens: Prompt tokens that did not have to be computed, known with the first events.
    """

    def __init__(self, engine: Engine, metrics: ServeMetrics, requests: list[Request], arrived_s: float) -> None:
        self.prompt_tokens = sum(len(request.prompt_token_ids) for request in requests)
        self.output_tokens = 0
        self._engine = engine
        self._metrics = metrics
        self._requests = requests
        self._arrived_s = arrived_s
        self._cached = [0] * len(requests)
        self._n = requests[0].params.n
        self._last_s: list[float | None] = [None] * (len(requests) * self._n)  # when each choice got a token
        self._unfinished = len(self._last_s)
        self._streams: list[AsyncIterator[OutputEvent]] = []
        self._events: AsyncGenerator[tuple[int, OutputEvent], None] | None = None

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens whose KV blocks were found in the cache."""
        return sum(self._cached)

    def begin(self) -> None:
        """Asks the engine now rather than when events are read; does nothing the second time.

        Raises:
            MillpondError: The engine refuses a request; `aclose` cancels the others.
        """
        if self._events is None:
            self._metrics.prompt_tokens.add(self.prompt_tokens)
            self._events = merged(self._streams)
            for request in self._requests:
                self._streams.append(self._engine.generate(request))

    async def events(self) -> AsyncGenerator[tuple[int, OutputEvent], None]:
        """Yields (number of the prompt, event) until every choice of every prompt has finished.

        Raises:
            MillpondError: A sequence did not end by its own; the others are cancelled.
        """
        self.begin()
        assert self._events is not None
        async for prompt, event in self._events:
            self.note(prompt, event)
            yield prompt, event
        self._metrics.duration.observe(perf_counter() - self._arrived_s)

    async def pour(self, events: AsyncIterator[tuple[int, OutputEvent]], write: Write, outlet: Outlet) -> None:
        """Gives what is left of `events()` to `write`, waiting whenever `outlet` is full.

        Events of a single prompt's stream do not wake a task each: `write` is called where they come about.

        Args:
            events: Of which at least one was read.
            write: Takes (number of the prompt, event).
            outlet: What `write` fills.

        Raises:
            MillpondError: A sequence did not end by its own.
            Exception: Whatever `write` raised.
        """
        if len(self._streams) == 1 and isinstance(self._streams[0], RequestStream):
            if self._unfinished:

                def take(event: OutputEvent) -> bool:
                    self.note(0, event)
                    write(0, event)
                    return not self._unfinished

                await pour(self._streams[0], take, outlet)
            self._metrics.duration.observe(perf_counter() - self._arrived_s)
            return
        async for prompt, event in events:
            write(prompt, event)
            if outlet.is_full:
                await outlet.drained()

    def note(self, prompt: int, event: OutputEvent) -> None:
        """Counts an event.

        Raises:
            MillpondError: It tells of a failure.
        """
        self._count(prompt, event)
        if event.finish_reason in _FAILURES:
            raise failure(event)

    async def aclose(self) -> None:
        """Cancels what still runs."""
        if self._events is None:
            return
        await self._events.aclose()
        for stream in self._streams:  # of events that nobody began to read
            await _close(stream)
        if self._unfinished:
            self._metrics.finished.add(self._unfinished, "cancelled")
            self._unfinished = 0

    def _count(self, prompt: int, event: OutputEvent) -> None:
        metrics = self._metrics
        num_tokens = len(event.token_ids)
        if num_tokens:
            now_s = perf_counter()
            place = prompt * self._n + event.index
            last_s = self._last_s[place]
            if last_s is not None:
                metrics.inter_token.observe((now_s - last_s) / num_tokens)
            else:
                begin = prompt * self._n
                if all(other is None for other in self._last_s[begin : begin + self._n]):
                    metrics.first_token.observe(now_s - self._arrived_s)
            self._last_s[place] = now_s
            self.output_tokens += num_tokens
            metrics.output_tokens.add(num_tokens)
        if event.num_cached_tokens and event.index == 0:
            self._cached[prompt] = event.num_cached_tokens
        if event.queue_s is not None:
            metrics.queue.observe(event.queue_s)
        if event.finish_reason is not None:
            self._unfinished -= 1
            metrics.finished.add(1.0, event.finish_reason)


async def merged(sources: list[AsyncIterator[OutputEvent]]) -> AsyncGenerator[tuple[int, OutputEvent], None]:
    """Yields (number of the source, event) as events come; closes every source at the end, whatever the end is."""
    try:
        if len(sources) == 1:
            async for event in sources[0]:
                yield 0, event
            return
        async for item in _merged_many(sources):
            yield item
    finally:
        for source in sources:
            await _close(source)


async def _merged_many(sources: list[AsyncIterator[OutputEvent]]) -> AsyncGenerator[tuple[int, OutputEvent], None]:
    queue: asyncio.Queue[tuple[int, OutputEvent] | Exception | None] = asyncio.Queue(_QUEUED_EVENTS)

    async def pump(number: int, source: AsyncIterator[OutputEvent]) -> None:
        try:
            async for event in source:
                await queue.put((number, event))
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    pumps = [asyncio.create_task(pump(number, source)) for number, source in enumerate(sources)]
    try:
        num_open = len(sources)
        while num_open:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                num_open -= 1
            else:
                yield item
    finally:
        for task in pumps:
            task.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)


async def _close(source: AsyncIterator[OutputEvent]) -> None:
    close = getattr(source, "aclose", None)
    if close is not None:
        await close()


def failure(event: OutputEvent) -> MillpondError:
    """Returns the error that a failed sequence's last event tells of."""
    if event.error is not None:
        return typed_error(event.error)
    if event.finish_reason == "deadline":
        return DeadlineError("The request ran out of its time before it was finished.", fix="Ask for less.")
    if event.finish_reason == "cancelled":
        return CancelledError("The request was stopped by the server.", fix="Try again shortly.")
    return typed_error(ErrorInfo("internal_error", "The engine could not finish the request."))

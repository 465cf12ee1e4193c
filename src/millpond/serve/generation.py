"""`Generation`: the engine's work for one client call, which is one request per prompt.

Merges the events of its requests, turns failed sequences into exceptions, counts tokens for the usage block and feeds
the metrics. Closing it cancels whatever still runs. Every protocol adapter reads events through it, and it knows none.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from time import perf_counter

from millpond.api.request import ErrorInfo, OutputEvent, Request
from millpond.base.errors import CancelledError, DeadlineError, MillpondError
from millpond.inference.engine.messages import typed_error
from millpond.serve.gateway import Engine
from millpond.serve.metrics import ServeMetrics

_QUEUED_EVENTS = 64  # of all prompts of a call together; a full queue leaves events in the engine's client


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
        self._last_s: dict[tuple[int, int], float] = {}
        self._unfinished = sum(request.params.n for request in requests)
        self._events: AsyncGenerator[tuple[int, OutputEvent], None] | None = None

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens whose KV blocks were found in the cache."""
        return sum(self._cached)

    async def events(self) -> AsyncGenerator[tuple[int, OutputEvent], None]:
        """Yields (number of the prompt, event) until every choice of every prompt has finished.

        Raises:
            MillpondError: A sequence did not end by its own; the others are cancelled.
        """
        self._metrics.prompt_tokens.add(self.prompt_tokens)
        self._events = merged([self._engine.generate(request) for request in self._requests])
        async for prompt, event in self._events:
            self._count(prompt, event)
            if event.finish_reason in ("error", "cancelled", "deadline"):
                raise failure(event)
            yield prompt, event
        self._metrics.duration.observe(perf_counter() - self._arrived_s)

    async def aclose(self) -> None:
        """Cancels what still runs."""
        if self._events is None:
            return
        await self._events.aclose()
        if self._unfinished:
            self._metrics.finished.add(self._unfinished, "cancelled")
            self._unfinished = 0

    def _count(self, prompt: int, event: OutputEvent) -> None:
        metrics = self._metrics
        now_s = perf_counter()
        num_tokens = len(event.token_ids)
        key = (prompt, event.index)
        if num_tokens:
            last_s = self._last_s.get(key)
            if last_s is not None:
                metrics.inter_token.observe((now_s - last_s) / num_tokens)
            elif not any(other[0] == prompt for other in self._last_s):
                metrics.first_token.observe(now_s - self._arrived_s)
            self._last_s[key] = now_s
            self.output_tokens += num_tokens
            metrics.output_tokens.add(num_tokens)
        if event.index == 0 and event.num_cached_tokens:
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

"""One call of a generating endpoint, from "are we ready" to the last byte, for completions and chat alike.

`GeneratingRoute` is the ASGI endpoint; it opens and closes everything a call holds. The adapters (`completions.py`,
`chat.py`) translate the body, and hand back either a whole reply or a `ChunkWriter`, which is all they differ in.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from millpond.api.request import OutputEvent, Request, SamplingParams
from millpond.base.errors import ModelNotFoundError, RequestError
from millpond.serve.gateway import Engine, Gateway
from millpond.serve.generation import Generation, Outlet
from millpond.serve.http.errors import invalid
from millpond.serve.http.openai.fields import GenerationFields, StreamOptions
from millpond.serve.http.openai.params import Constraint
from millpond.serve.http.openai.replies import PromptTokensDetails, Usage
from millpond.serve.http.stream import Beginning, ClientGone, EventStream

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """What an adapter needs to know about the call it answers.

    Attributes:
        http: The HTTP request.
        gateway: The serving process.
        engine: Its engine.
        stack: Closes what the call holds, at its end.
        arrived_s: `perf_counter` at its beginning.
        created: Unix time, whole seconds.
    """

    http: HttpRequest
    gateway: Gateway
    engine: Engine
    stack: AsyncExitStack
    arrived_s: float = field(default_factory=time.perf_counter)
    created: int = field(default_factory=lambda: int(time.time()))

    def public_id(self, prefix: str, given: str | None) -> str:
        """Returns the id the client sees: made of its own `request_id` where it sent one."""
        return f"{prefix}-{given or self.http.state.request_id}"

    @property
    def fingerprint(self) -> str:
        """Names what could change an answer: the program, the weights' dtype and the kernels."""
        info = self.engine.info
        return f"millpond-{self.gateway.version}-{info.dtype}-{info.executor}-{info.isa}"

    def check_model(self, name: str | None) -> str:
        """Returns the name of the model to answer with.

        Raises:
            ModelNotFoundError: Another one was asked for.
        """
        served = self.engine.info.model
        if name is not None and name != served:
            raise ModelNotFoundError(
                f"The model {name[:200]!a} does not exist here.", fix=f"This server has {served!r}.", param="model"
            )
        return served

    async def prepare(self, work: Callable[[], T], constraint: Constraint | None, *, in_thread: bool) -> T:
        """Does the text work of a call: tokenising, and compiling its grammar to see that the engine can.

        Args:
            work: Makes the prompts.
            constraint: What the text must be.
            in_thread: `work` takes long enough to hold up the streams of others.

        Raises:
            ApiError: The grammar cannot be used.
        """
        grammars = self.gateway.grammars(self.engine)

        def check_and_work() -> T:
            if constraint is not None:
                try:
                    grammars.check(constraint.grammar)
                except RequestError as error:
                    raise invalid(str(error), param=constraint.param) from error
            return work()

        if in_thread or constraint is not None:
            return await self.gateway.in_thread(check_and_work)
        return await self.gateway.in_turn(work)

    async def start(
        self, prompts: list[list[int]], params: SamplingParams, body: GenerationFields, id: str
    ) -> Generation:
        """Returns the generation for a list of tokenised prompts, which the engine has got.

        Raises:
            MillpondError: The engine refuses it.
        """
        requests = [
            Request(
                request_id=f"{id}-{number}" if len(prompts) > 1 else id,
                prompt_token_ids=prompt,
                params=params,
                priority=body.priority or 0,
                deadline_s=self.gateway.settings.request_timeout_s,
                cache_salt=body.cache_salt or "",
            )
            for number, prompt in enumerate(prompts)
        ]
        generation = Generation(self.engine, self.gateway.metrics, requests, self.arrived_s)
        self.stack.push_async_callback(generation.aclose)
        generation.begin()
        await asyncio.sleep(0)  # the message goes out at the end of this turn; what follows is done while it works
        return generation


Answer = Callable[[Call], Awaitable[Response]]


class GeneratingRoute:
    """An ASGI endpoint that generates.

    Args:
        gateway: The serving process.
        answer: Translates the call and returns its response.
        prompt_field: Where its bodies have what becomes the engine's prompt.
    """

    def __init__(self, gateway: Gateway, answer: Answer, prompt_field: str = "prompt") -> None:
        self._gateway = gateway
        self._answer = answer
        self._prompt_field = prompt_field

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        engine = self._gateway.ready_engine()
        with self._gateway.open_request():
            async with AsyncExitStack() as stack:
                call = Call(HttpRequest(scope, receive), self._gateway, engine, stack)
                try:
                    response = await self._answer(call)
                    await response(scope, receive, send)
                except RequestError as error:
                    if error.param == "prompt":
                        error.param = self._prompt_field
                    raise
                except ClientGone:  # nothing was sent
                    await Response(status_code=499)(scope, receive, send)  # nobody reads it; the metrics count it


class ChunkWriter(Protocol):
    """Turns events into frames of a stream."""

    def on_event(self, prompt: int, event: OutputEvent) -> bytes:
        """Returns the frames an event gives, empty when it gives none."""
        ...

    def at_end(self) -> bytes:
        """Returns the frames after the last event."""
        ...


def stream_reply(call: Call, generation: Generation, writer: ChunkWriter) -> Response:
    """Returns the stream. It begins once the engine has: what goes wrong before that still gets its own status."""
    settings = call.gateway.settings
    events = generation.events()
    call.stack.push_async_callback(events.aclose)
    first = asyncio.ensure_future(anext(events))
    call.stack.push_async_callback(_cancel, first)

    async def pour(outlet: Outlet) -> None:
        def write(prompt: int, event: OutputEvent) -> None:
            data = writer.on_event(prompt, event)
            if data:
                outlet.write(data)

        write(*await first)
        await outlet.drained()
        await generation.pour(events, write, outlet)
        data = writer.at_end()
        if data:
            outlet.write(data)

    return EventStream(
        pour,
        send_timeout_s=settings.send_timeout_s,
        heartbeat_s=settings.heartbeat_s,
        begins_with=Beginning(first, settings.first_event_s),
    )


async def _cancel(task: asyncio.Future[tuple[int, OutputEvent]]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


class StreamUsage:
    """How many tokens a call used, and when its stream says so.

    Args:
        options: The body's `stream_options`.
        generation: What counts.
        counts_output: False when what is generated is dropped.
    """

    def __init__(self, options: StreamOptions | None, generation: Generation, counts_output: bool = True) -> None:
        self._generation = generation
        self._counts_output = counts_output
        self._always = bool(options and options.continuous_usage_stats)
        self.has_last_chunk = bool(options and options.include_usage)

    @property
    def is_constant(self) -> bool:
        """True when all chunks with choices say the same of it."""
        return not self._always

    def of_chunk(self) -> Usage | msgspec.UnsetType | None:
        """Returns the usage field of a chunk with choices."""
        if self._always:
            return self.total()
        return None if self.has_last_chunk else msgspec.UNSET

    def total(self) -> Usage:
        """Returns the usage so far."""
        generation = self._generation
        output_tokens = generation.output_tokens if self._counts_output else 0
        return Usage(
            prompt_tokens=generation.prompt_tokens,
            completion_tokens=output_tokens,
            total_tokens=generation.prompt_tokens + output_tokens,
            prompt_tokens_details=PromptTokensDetails(generation.cached_tokens),
        )

"""A call's whole answer: runs a generation to its end and keeps what each choice got.

Called by every protocol's route that answers in one piece. Knows neither their bodies nor their replies.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from typing import Protocol

from starlette.requests import Request as HttpRequest

from millpond.api.request import FinishReason, OutputEvent, TokenLogprob
from millpond.serve.generation import Generation
from millpond.serve.http.stream import until_gone


class OpenCall(Protocol):
    """What is needed of the call that is answered: who waits, and what is closed at its end."""

    @property
    def http(self) -> HttpRequest: ...

    @property
    def stack(self) -> AsyncExitStack: ...


@dataclass(slots=True)
class ChoiceOutput:
    """Everything one choice got."""

    text: list[str] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob | None] | None = None
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    queue_s: float = 0.0

    def as_event(self, index: int) -> OutputEvent:
        """Returns everything as one event, for the code that makes a stream's pieces."""
        return OutputEvent(
            request_id="",
            index=index,
            text="".join(self.text),
            token_ids=self.token_ids,
            logprobs=self.logprobs or None,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
        )

    def add(self, event: OutputEvent) -> None:
        """Takes an event in."""
        self.text.append(event.text)
        self.token_ids += event.token_ids
        self.logprobs += event.logprobs or ()
        if event.prompt_logprobs is not None:
            self.prompt_logprobs = event.prompt_logprobs
        self.queue_s = event.queue_s or self.queue_s
        self.finish_reason = event.finish_reason
        self.stop_reason = event.stop_reason


async def collect(call: OpenCall, generation: Generation, num_prompts: int, n: int) -> list[list[ChoiceOutput]]:
    """Runs a generation to its end and returns, per prompt, its `n` choices.

    Raises:
        ClientGone: Nobody waits for the reply any more.
    """
    outputs = [[ChoiceOutput() for _ in range(n)] for _ in range(num_prompts)]

    async def read() -> None:
        events = generation.events()
        call.stack.push_async_callback(events.aclose)
        async for prompt, event in events:
            outputs[prompt][event.index].add(event)

    await until_gone(call.http.receive, read())
    return outputs

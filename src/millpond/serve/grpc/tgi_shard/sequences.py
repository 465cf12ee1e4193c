"""`ShardSequence`: one request of a router, read a token at a time although the engine does not wait for it.

The engine runs a request to its end as fast as it can; the sequence keeps what was not fetched yet, which is bounded by
the request's own `max_new_tokens`. Closing it frees the engine's blocks. Knows no batches.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass

from millpond.api.request import OutputEvent, Request, TokenLogprob
from millpond.inference.text import Tokenizer
from millpond.serve.generation import failure
from millpond.serve.grpc.tgi_shard.errors import ShardError
from millpond.serve.http.tgi.replies import FinishReason, PrefillToken, Token
from millpond.serve.http.tgi.tokens import TokenTexts, prefill_tokens
from millpond.serve.http.tgi.work import finish_reason


@dataclass(frozen=True, slots=True)
class Step:
    """What one step gave a sequence.

    Attributes:
        prefill: The prompt's tokens, with the first step if they were asked for.
        finish_reason: Set with the last token.
        text: The whole text, with the last token.
    """

    token: Token
    top: list[Token]
    prefill: list[PrefillToken]
    num_tokens: int
    finish_reason: FinishReason | None = None
    text: str = ""


class ShardSequence:
    """One request.

    Args:
        id: The router's name for it.
        request: As the engine got it.
        events: Its events; iterated by nobody else.
        tokenizer: For the tokens' texts.
        seed: The router's seed, if it means something.
    """

    def __init__(
        self, id: int, request: Request, events: AsyncIterator[OutputEvent], *, tokenizer: Tokenizer, seed: int | None
    ) -> None:
        self.id = id
        self.seed = seed
        self.num_told = 0
        self._request = request
        self._events = events
        self._tokenizer = tokenizer
        self._texts = TokenTexts(tokenizer)
        self._waiting: deque[TokenLogprob] = deque()
        self._text: list[str] = []
        self._prompt: list[TokenLogprob | None] | None = None
        self._last: OutputEvent | None = None

    @property
    def max_tokens(self) -> int:
        """The longest it can get, prompt included."""
        return len(self._request.prompt_token_ids) + (self._request.params.max_tokens or 0)

    @property
    def num_tokens(self) -> int:
        """How long it is as far as the router knows."""
        return len(self._request.prompt_token_ids) + self.num_told

    async def step(self) -> Step:
        """Returns the next token, waiting for it.

        Raises:
            MillpondError: The engine could not give one.
        """
        while not self._waiting:
            await self._read()
        number = self._waiting.popleft()
        self.num_told += 1
        last = self._last if not self._waiting else None
        prompt, self._prompt = self._prompt, None
        return Step(
            token=self._texts.add(number, last is not None),
            top=self._texts.top(number, self._request.params.logprobs or 0),
            prefill=prefill_tokens(self._request.prompt_token_ids, prompt, self._tokenizer),
            num_tokens=self.num_told,
            finish_reason=None if last is None else finish_reason(last.finish_reason, last.stop_reason),
            text="" if last is None else "".join(self._text),
        )

    async def close(self) -> None:
        """Ends it; what the engine still runs of it is cancelled."""
        close = getattr(self._events, "aclose", None)
        if close is not None:
            await close()

    async def _read(self) -> None:
        if self._last is not None:
            raise ShardError("failed", f"Request {self.id} has ended.")
        try:
            event = await anext(self._events)
        except StopAsyncIteration:
            raise ShardError("failed", f"Request {self.id} ended without a reason.") from None
        if event.finish_reason in ("error", "cancelled", "deadline"):
            raise failure(event)
        self._waiting.extend(event.logprobs or ())
        self._text.append(event.text)
        self._prompt = event.prompt_logprobs or self._prompt
        if event.finish_reason is not None:
            self._last = event

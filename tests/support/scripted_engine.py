"""An engine's client without an engine, to test what stands before it: it says what the test tells it to say.

Admission is the real one. Answers are given a token an event; a test can hold it after some tokens, make it fail, or
make it refuse. What was cancelled is kept, because that is what most tests here are about.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

from millpond.api.request import EngineInfo, EngineStats, ErrorInfo, OutputEvent, Request, TokenLogprob
from millpond.inference.engine.admission import check_request
from millpond.inference.text import TextModel

MODEL = "tiny"
CACHED_TOKENS = 2


def make_info(text: TextModel, **changes: object) -> EngineInfo:
    """What a small engine says of itself."""
    facts = {
        "model": MODEL,
        "family": "llama",
        "dtype": "float32",
        "dtype_reason": "asked for",
        "cache_dtype": "float32",
        "executor": "reference",
        "isa": "none",
        "threads": 1,
        "vocab_size": text.tokenizer.vocab_size,
        "max_model_len": 512,
        "num_blocks": 64,
        "block_size": 32,
        "weight_bytes": 1000,
        "cache_bytes": 1000,
        "eos_token_ids": list(text.eos_token_ids),
        "load_seconds": {"weights": 0.1},
        "max_sequences": 16,
        "max_queue": 16,
    }
    return EngineInfo(**{**facts, **changes})  # type: ignore[arg-type]


class ScriptedEngine:
    """Stands in for `AsyncEngine`.

    Attributes:
        answers: What it says to choice 0, 1, ...; the last one goes on for further choices.
        requests: Everything that was admitted.
        closed: Ids of requests whose iterator was closed before it had ended.
        stop_at: After so many tokens of each choice it waits for `go_on`.
        failure: The last event's error, sent after `stop_at` tokens in place of waiting.
        refusal: Raised in place of admitting.
        stop_reason: What the last event says ended it, in place of the end token.
    """

    def __init__(self, text: TextModel) -> None:
        self.text = text
        self.info = make_info(text)
        self.stats = EngineStats(num_running=1, num_waiting=2, num_blocks=64, num_free_blocks=48)
        self.state = "ready"
        self.answers = ["Hello there, miller."]
        self.requests: list[Request] = []
        self.closed: list[str] = []
        self.stop_at: int | None = None
        self.go_on = asyncio.Event()
        self.failure: ErrorInfo | None = None
        self.refusal: Exception | None = None
        self.stop_reason: str | None = None

    def generate(self, request: Request) -> AsyncIterator[OutputEvent]:
        """Admits a request as the real client does."""
        if self.refusal is not None:
            raise self.refusal
        request = check_request(request, self.info)
        self.requests.append(request)
        return self._events(request)

    async def close(self) -> None:
        """Nothing to close."""
        self.state = "closed"

    async def _events(self, request: Request) -> AsyncIterator[OutputEvent]:
        done = False
        try:
            answers = [
                self._tokens(self.answers[min(index, len(self.answers) - 1)], request)
                for index in range(request.params.n)
            ]
            for place in range(max(len(tokens) for tokens in answers)):
                if place == self.stop_at:
                    if self.failure is not None:
                        done = True
                        yield OutputEvent(request.request_id, 0, "", [], finish_reason="error", error=self.failure)
                        return
                    await self.go_on.wait()
                for index, tokens in enumerate(answers):
                    if place < len(tokens):
                        done = done or (index == len(answers) - 1 and place == len(tokens) - 1)
                        yield self._event(request, index, tokens, place)
                await asyncio.sleep(0)
            done = True
        finally:
            if not done:
                self.closed.append(request.request_id)

    def _tokens(self, answer: str, request: Request) -> list[int]:
        tokens = [*self.text.tokenizer.encode(answer, False), self.text.eos_token_ids[0]]
        return tokens[: request.params.max_tokens]

    def _event(self, request: Request, index: int, tokens: list[int], place: int) -> OutputEvent:
        params = request.params
        is_last = place == len(tokens) - 1
        is_eos = tokens[place] in self.text.eos_token_ids
        has_prompt = place == 0 and index == 0 and params.prompt_logprobs is not None
        return OutputEvent(
            request_id=request.request_id,
            index=index,
            text="" if is_eos else self.text.tokenizer.decode([tokens[place]]),
            token_ids=[tokens[place]],
            logprobs=None if params.logprobs is None else [_numbers(tokens[place], params.logprobs)],
            prompt_logprobs=(
                [None, *(_numbers(token, params.prompt_logprobs or 0) for token in request.prompt_token_ids[1:])]
                if has_prompt
                else None
            ),
            finish_reason=None if not is_last else "stop" if is_eos else "length",
            stop_reason=self.stop_reason if is_last else None,
            num_cached_tokens=CACHED_TOKENS if place == 0 and index == 0 else 0,
            queue_s=0.25 if place == 0 else None,
        )


def _numbers(token_id: int, top: int) -> TokenLogprob:
    return TokenLogprob(token_id, -0.5, 1, [(token_id, -0.5), *((10 + k, -1.0 - k) for k in range(top))][:top])

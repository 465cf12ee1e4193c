"""A model on this machine as a benchmark target: our own engine, without HTTP between.

Prompts are random ordinary tokens, decoding is greedy and goes past the end-of-sequence token, so that every request
gives the length that was asked for.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator, Sequence

from millpond.api.request import Request, SamplingParams
from millpond.base.errors import EngineDeadError
from millpond.cli.bench.load import Arrival
from millpond.inference.engine.client import AsyncEngine


class LocalTarget:
    """An engine that is up; the caller closes it."""

    def __init__(self, engine: AsyncEngine) -> None:
        info = engine.info
        tokenizer = engine.text.tokenizer
        known = min(info.vocab_size, tokenizer.vocab_size)  # some models pad their vocabulary
        self._tokens = [token for token in range(known) if token not in tokenizer.special_ids]
        self._engine = engine
        self._numbers = itertools.count()
        self.num_words = len(self._tokens)
        self.name = f"{info.model} ({info.dtype}, {info.executor} ops, {info.isa}, {info.threads} threads)"

    async def stream(self, prompt: Sequence[int], output_tokens: int) -> AsyncIterator[Arrival]:
        """Runs one request and yields what each step gave it."""
        params = SamplingParams(temperature=0, max_tokens=output_tokens, ignore_eos=True)
        tokens = [self._tokens[number] for number in prompt]
        request = Request(request_id=f"bench-{next(self._numbers)}", prompt_token_ids=tokens, params=params)
        async for event in self._engine.generate(request):
            if event.error is not None:
                raise EngineDeadError(event.error.message)
            yield Arrival(len(event.token_ids), prompt_tokens=len(tokens))

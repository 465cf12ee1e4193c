"""Sends a benchmark's requests at a target: so many at a time, or at random times at a given rate.

Knows targets only as `Target`. The prompts are made here, random but the same for the same seed, each different so
that only the prefix that is meant to be shared is found in a cache.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from millpond.base.errors import MillpondError
from millpond.cli.bench.measure import Trace


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """What to send.

    Attributes:
        concurrency: Requests open at a time.
        rate: Requests a second at random (Poisson) times, within `concurrency`; None: as fast as they are answered.
        shared_prefix: Tokens at the start of every prompt that are the same.
    """

    requests: int
    concurrency: int
    prompt_tokens: int
    output_tokens: int
    shared_prefix: int = 0
    rate: float | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Arrival:
    """Tokens that came at one moment; the counts are set once the target knows them."""

    tokens: int
    prompt_tokens: int | None = None
    output_tokens: int | None = None


class Target(Protocol):
    """Something that answers prompts."""

    @property
    def name(self) -> str: ...

    @property
    def num_words(self) -> int:
        """How many words a prompt can be made of; each is a token or about one."""
        ...

    def stream(self, prompt: Sequence[int], output_tokens: int) -> AsyncIterator[Arrival]:
        """Sends a prompt, given as numbers of words, and yields what arrives."""
        ...


def make_prompts(plan: LoadPlan, num_words: int) -> list[list[int]]:
    """Returns one prompt a request, each a list of numbers of words."""
    dice = random.Random(plan.seed)
    words = range(num_words)
    shared = dice.choices(words, k=min(plan.shared_prefix, plan.prompt_tokens))
    return [shared + dice.choices(words, k=plan.prompt_tokens - len(shared)) for _ in range(plan.requests)]


async def run_load(
    target: Target,
    plan: LoadPlan,
    *,
    on_done: Callable[[int], None] = lambda _: None,
    clock: Callable[[], float] = time.perf_counter,
) -> list[Trace]:
    """Sends the plan's requests and returns their traces in the order of sending.

    Args:
        target: Who answers.
        plan: What to send.
        on_done: Told how many requests have ended.
        clock: Seconds from any start.
    """
    prompts = make_prompts(plan, target.num_words)
    delays = _delays(plan)
    room = asyncio.Semaphore(plan.concurrency)
    start = clock()
    done = 0

    async def send(index: int) -> Trace:
        nonlocal done
        if delays is not None:
            await asyncio.sleep(delays[index] - (clock() - start))
        async with room:
            trace = await _measure(target, prompts[index], plan.output_tokens, clock)
        done += 1
        on_done(done)
        return trace

    return list(await asyncio.gather(*(send(index) for index in range(plan.requests))))


def _delays(plan: LoadPlan) -> list[float] | None:
    if plan.rate is None:
        return None
    dice = random.Random(plan.seed + 1)
    delays = [0.0]
    while len(delays) < plan.requests:
        delays.append(delays[-1] + dice.expovariate(plan.rate))
    return delays


async def _measure(target: Target, prompt: Sequence[int], output_tokens: int, clock: Callable[[], float]) -> Trace:
    trace = Trace(start_s=clock())
    try:
        async for arrival in target.stream(prompt, output_tokens):
            if arrival.tokens:
                trace.arrivals.append((clock(), arrival.tokens))
                trace.output_tokens += arrival.tokens
            trace.prompt_tokens = trace.prompt_tokens if arrival.prompt_tokens is None else arrival.prompt_tokens
            trace.output_tokens = trace.output_tokens if arrival.output_tokens is None else arrival.output_tokens
    except (MillpondError, OSError) as error:
        trace.error = str(error)
    trace.end_s = clock()
    return trace

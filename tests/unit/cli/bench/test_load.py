from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence

from millpond.base.errors import MillpondError
from millpond.cli.bench.load import Arrival, LoadPlan, make_prompts, run_load

PLAN = LoadPlan(requests=8, concurrency=3, prompt_tokens=16, output_tokens=4)


class CountingTarget:
    """Answers at once and counts how many requests are open at a time."""

    name = "counting"
    num_words = 100

    def __init__(self, fails: bool = False) -> None:
        self.open = self.most_open = 0
        self.prompts: list[Sequence[int]] = []
        self.fails = fails

    async def stream(self, prompt: Sequence[int], output_tokens: int) -> AsyncIterator[Arrival]:
        self.prompts.append(prompt)
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        for _ in range(output_tokens):
            await asyncio.sleep(0)
            yield Arrival(1, prompt_tokens=len(prompt))
        self.open -= 1
        if self.fails:
            raise MillpondError("The engine died.")


def test_prompts_have_the_length_and_differ() -> None:
    prompts = make_prompts(PLAN, 1000)
    assert {len(prompt) for prompt in prompts} == {16}
    assert len({tuple(prompt) for prompt in prompts}) == 8


def test_the_shared_prefix_is_shared_and_the_rest_is_not() -> None:
    plan = LoadPlan(requests=8, concurrency=1, prompt_tokens=16, output_tokens=1, shared_prefix=10)
    prompts = make_prompts(plan, 1000)
    assert len({tuple(prompt[:10]) for prompt in prompts}) == 1
    assert len({tuple(prompt[10:]) for prompt in prompts}) == 8


def test_the_same_seed_gives_the_same_prompts() -> None:
    assert make_prompts(PLAN, 50) == make_prompts(PLAN, 50)


async def test_no_more_requests_are_open_than_asked_for() -> None:
    target = CountingTarget()
    traces = await run_load(target, PLAN)
    assert target.most_open == 3
    assert [trace.output_tokens for trace in traces] == [4] * 8


async def test_every_end_is_told() -> None:
    told: list[int] = []
    await run_load(CountingTarget(), PLAN, on_done=told.append)
    assert told == list(range(1, 9))


async def test_an_error_ends_one_request_and_not_the_run() -> None:
    traces = await run_load(CountingTarget(fails=True), PLAN)
    assert {trace.error for trace in traces} == {"The engine died."}


async def test_a_rate_spreads_the_requests_and_sends_them_all() -> None:
    plan = LoadPlan(requests=5, concurrency=5, prompt_tokens=2, output_tokens=1, rate=1e6)
    assert len(await run_load(CountingTarget(), plan)) == 5

"""The rate limiter: resources are never overdrawn, nobody waits for ever, priorities have their share."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millpond.serve.servables.backend import ModelFolder, Replies
from millpond.serve.servables.batching.rates import RateLimiter
from millpond.serve.servables.config import InstanceGroup
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.limits import ServableLimits
from millpond.serve.servables.messages import InferRequest
from millpond.serve.servables.registry import Servables
from tests.support.memory_backend import MemoryBackend, MemoryInstance, echo, echo_config, request_of
from tests.support.virtual_time import clock, run


@settings(max_examples=60, deadline=None)
@given(
    workers=st.lists(
        st.tuples(st.integers(1, 3), st.integers(0, 2), st.integers(1, 4), st.booleans()), min_size=1, max_size=6
    ),
    amount=st.integers(3, 5),
)
def test_resources_are_never_overdrawn_and_all_come_to_an_end(
    workers: list[tuple[int, int, int, bool]], amount: int
) -> None:
    async def main() -> None:
        limiter = RateLimiter({"a": amount})
        used = Counter[str]()

        async def work(a: int, b: int, rounds: int, gives_up: bool) -> None:
            gate = limiter.gate(InstanceGroup("g", resources={"a": a, "b": b}, global_resources=("a",)))
            for _ in range(rounds):
                try:
                    async with asyncio.timeout(0.5 if gives_up else None):
                        await gate.enter()
                except TimeoutError:
                    continue
                used.update(a=a, b=b)
                assert used["a"] <= amount
                assert used["b"] <= 2
                await asyncio.sleep(1)
                used.subtract(a=a, b=b)
                gate.leave()

        await asyncio.gather(*(work(*worker) for worker in workers))
        last = limiter.gate(InstanceGroup("g", resources={"a": amount, "b": 2}, global_resources=("a",)))
        async with asyncio.timeout(1):
            await last.enter()

    run(main())


def test_a_group_that_could_never_run_is_refused() -> None:
    with pytest.raises(ServableError, match='Resource count for "a" is limited to 1 which will prevent'):
        RateLimiter({"a": 1}).gate(InstanceGroup("g", resources={"a": 2}))


def test_priority_two_runs_half_as_often_and_instances_share_what_there_is() -> None:
    async def main() -> Counter[str]:
        ran = Counter[str]()
        num_open = 0

        async def work(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
            nonlocal num_open
            num_open += 1
            assert num_open == 1
            ran[instance.config.name] += 1
            await asyncio.sleep(1)
            num_open -= 1
            await echo(instance, requests, replies)

        servables = Servables({"memory": MemoryBackend(work)}, ServableLimits(rate_limit=True), clock=clock)
        for name, priority in (("often", 1), ("seldom", 2)):
            group = InstanceGroup(name, 2, resources={"a": 4}, global_resources=("a",), priority=priority)
            await servables.add(replace(echo_config(name), instance_groups=(group,)), ModelFolder(None, 1))

        async def client(name: str) -> None:
            while clock() < 1090e9:
                await servables.infer(request_of(name))

        await asyncio.gather(*(client(name) for name in ("often", "seldom") for _ in range(3)))
        await servables.close()
        return ran

    ran = run(main())
    assert ran.total() >= 88
    assert ran["often"] / ran["seldom"] == pytest.approx(2.0, rel=0.15)

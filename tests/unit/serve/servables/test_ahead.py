"""Executions that are given to an instance before it has finished the last one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from millpond.serve.servables.ahead import Ahead
from millpond.serve.servables.backend import Ended, ExecutionTiming, Freed, ModelFolder, Replies
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.registry import Servables
from tests.support.held_instance import HeldInstance
from tests.support.memory_backend import echo_config, request_of

FAST = ExecutionTiming(compute_infer_ns=20_000)
SLOW = ExecutionTiming(compute_infer_ns=5_000_000)


class Queueing(HeldInstance):
    """An instance that holds what it is given until the test lets it go."""

    queues_ahead = True

    def __init__(self) -> None:
        self.given: list[tuple[InferRequest, Replies, Ended]] = []
        self.num_restarts = 0

    def begin(
        self, requests: Sequence[InferRequest], replies: Replies, ended: Ended, freed: Freed | None = None
    ) -> None:
        self.given.append((requests[0], replies, ended))

    def finish(self, timing: ExecutionTiming = FAST) -> str:
        request, replies, ended = self.given.pop(0)
        replies.send(0, InferResponse(request.model, 1, dict(request.inputs)))
        ended(timing)
        return request.request_id

    def die(self) -> None:
        given, self.given = self.given, []
        for _, _, ended in given:
            ended(ServableError("unavailable", "The process died."))

    async def restart(self) -> None:
        self.num_restarts += 1

    async def close(self) -> None:
        self.die()


async def served(instance: Queueing) -> tuple[Servables, list[asyncio.Task[InferResponse]]]:
    servables = Servables({"memory": instance})
    await servables.add(echo_config(), ModelFolder(None, 1))
    tasks = [
        asyncio.create_task(servables.infer(request_of("echo", request_id=str(number)))) for number in range(40)
    ]
    await asyncio.sleep(0)
    return servables, tasks


async def test_a_fast_instance_is_given_more_than_one_in_order() -> None:
    instance = Queueing()
    servables, tasks = await served(instance)
    assert len(instance.given) == 1
    done = [instance.finish()]
    assert len(instance.given) == 17
    while instance.given:
        done.append(instance.finish())
        assert len(instance.given) <= 17
    assert done == [str(number) for number in range(40)]
    await asyncio.gather(*tasks)
    await servables.close()


async def test_an_instance_gets_more_when_half_of_what_it_had_is_done() -> None:
    instance = Queueing()
    servables, tasks = await served(instance)
    instance.finish()
    numbers = []
    for _ in range(12):
        instance.finish()
        numbers.append(len(instance.given))
    assert numbers == [16, 15, 14, 13, 12, 11, 10, 9, 17, 16, 15, 14]
    while instance.given:
        instance.finish()
    await asyncio.gather(*tasks)
    await servables.close()


async def test_a_slow_execution_ends_it_at_once() -> None:
    instance = Queueing()
    servables, tasks = await served(instance)
    instance.finish()
    instance.finish(SLOW)
    while len(instance.given) > 1:
        instance.finish(SLOW)
    for _ in range(5):
        instance.finish(SLOW)
        assert len(instance.given) == 1
    while instance.given:
        instance.finish()
    await asyncio.gather(*tasks)
    await servables.close()


async def test_what_waited_at_an_instance_that_died_is_executed_by_the_next() -> None:
    instance = Queueing()
    servables, tasks = await served(instance)
    instance.finish()
    assert len(instance.given) == 17
    instance.die()
    async with asyncio.timeout(10):
        while not instance.given:
            await asyncio.sleep(0.01)
    assert instance.num_restarts == 1
    done = []
    while instance.given:
        done.append(instance.finish())
    assert done == [str(number) for number in range(2, 40)]
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [index for index, outcome in enumerate(outcomes) if isinstance(outcome, Exception)] == [1]
    await servables.close()


async def test_the_time_behind_others_is_counted_as_waiting() -> None:
    instance = Queueing()
    servables, tasks = await served(instance)
    while instance.given:
        instance.finish(ExecutionTiming(compute_infer_ns=20_000, waited_ns=10**12))
    await asyncio.gather(*tasks)
    (statistics,) = servables.statistics("echo")
    assert statistics.queue.ns >= 40 * 10**12
    await servables.close()


@pytest.mark.parametrize(("taken_ns", "limit"), [(1, 17), (100_000, 11), (400_000, 3), (1_000_000, 2), (2_000_000, 1)])
def test_the_limit_is_a_millisecond_of_work(taken_ns: int, limit: int) -> None:
    ahead = Ahead(1, is_allowed=True)
    ahead.took(ExecutionTiming(compute_infer_ns=taken_ns))
    assert ahead.limit == limit
    ahead.restarted()
    assert ahead.limit == 1


def test_an_instance_that_runs_side_by_side_is_given_no_more() -> None:
    ahead = Ahead(4, is_allowed=False)
    ahead.took(FAST)
    assert ahead.limit == 4

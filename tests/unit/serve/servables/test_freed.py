"""A batch begins as soon as the model is free, before the responses of the batch before it are sent."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from millpond.serve.servables.backend import Ended, ExecutionTiming, Freed, ModelFolder, Replies
from millpond.serve.servables.config import DynamicBatching
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.registry import Servables
from tests.support.held_instance import HeldInstance
from tests.support.memory_backend import echo_config, request_of


class Batching(HeldInstance):
    """An instance of batches that the test finishes, and what happened in which order."""

    def __init__(self) -> None:
        self.open: list[tuple[Sequence[InferRequest], Replies, Ended, Freed | None]] = []
        self.history: list[str] = []
        self.fault: Exception | None = None

    def begin(
        self, requests: Sequence[InferRequest], replies: Replies, ended: Ended, freed: Freed | None = None
    ) -> None:
        if self.fault is not None:
            raise self.fault
        self.history.append(f"begin {len(requests)}")
        self.open.append((requests, replies, ended, freed))

    def finish(self) -> None:
        requests, replies, ended, freed = self.open.pop(0)
        assert freed is not None
        freed()
        for index, request in enumerate(requests):
            replies.send(index, InferResponse(request.model, 1, dict(request.inputs)))
        self.history.append(f"sent {len(requests)}")
        ended(ExecutionTiming())


async def served(instance: Batching) -> Servables:
    servables = Servables({"memory": instance})
    config = replace(echo_config(), max_batch_size=4, dynamic_batching=DynamicBatching())
    await servables.add(config, ModelFolder(None, 1))
    return servables


def ask(servables: Servables, count: int) -> list[asyncio.Task[InferResponse]]:
    return [asyncio.create_task(servables.infer(request_of("echo", [[1]]))) for _ in range(count)]


async def test_the_next_batch_begins_before_the_responses_of_the_last() -> None:
    instance = Batching()
    servables = await served(instance)
    tasks = ask(servables, 10)
    for _ in range(3):
        await asyncio.sleep(0)
    assert instance.history == ["begin 4"]  # what came in one turn of the loop is one batch
    instance.finish()
    assert instance.history == ["begin 4", "begin 4", "sent 4"]
    instance.finish()
    instance.finish()
    assert instance.history[3:] == ["begin 2", "sent 4", "sent 2"]
    assert not instance.open
    await asyncio.gather(*tasks)
    again = ask(servables, 1)
    for _ in range(3):
        await asyncio.sleep(0)
    assert len(instance.open) == 1  # one at a time, as before
    again += ask(servables, 1)
    for _ in range(3):
        await asyncio.sleep(0)
    assert len(instance.open) == 1
    instance.finish()
    instance.finish()
    await asyncio.gather(*again)
    await servables.close()


@pytest.mark.parametrize("fault", [ServableError("invalid_argument", "no"), ValueError("a bug")])
async def test_a_batch_that_cannot_begin_is_answered_and_the_next_one_runs(fault: Exception) -> None:
    instance = Batching()
    servables = await served(instance)
    instance.fault = fault
    for task in ask(servables, 5):
        with pytest.raises(ServableError):
            await task
    instance.fault = None
    tasks = ask(servables, 2)
    for _ in range(3):
        await asyncio.sleep(0)
    instance.finish()
    await asyncio.gather(*tasks)
    await servables.close()

"""The registry with a back end in this process: who answers, what is said, and that nothing is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import pytest

from millpond.serve.servables.backend import ModelFolder, Replies
from millpond.serve.servables.config import DynamicBatching, InstanceGroup
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.registry import IndexEntry, Servables
from tests.support.memory_backend import MemoryBackend, MemoryInstance, echo, echo_config, request_of


@pytest.fixture
async def backend() -> MemoryBackend:
    return MemoryBackend(echo)


@pytest.fixture
async def servables(backend: MemoryBackend) -> AsyncIterator[Servables]:
    made = Servables({"memory": backend})
    yield made
    await made.close()


def version(number: int) -> ModelFolder:
    return ModelFolder(None, number)


async def test_a_request_gets_its_own_answer(servables: Servables) -> None:
    await servables.add(echo_config(), version(1))
    answers = await asyncio.gather(*(servables.infer(request_of("echo", [n])) for n in range(50)))
    assert [answer.outputs["X"].array.tolist() for answer in answers] == [[n] for n in range(50)]


async def test_one_execution_at_a_time_unless_the_instance_takes_more(
    servables: Servables, backend: MemoryBackend
) -> None:
    async def slow(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
        await asyncio.sleep(0)
        await echo(instance, requests, replies)

    backend.work = slow
    await servables.add(echo_config("one"), version(1))
    backend.concurrency = 3
    await servables.add(echo_config("three"), version(1))
    for name in ("one", "three"):
        await asyncio.gather(*(servables.infer(request_of(name)) for _ in range(20)))
    assert [instance.most_open for instance in backend.instances] == [1, 3]


async def test_a_stream_gives_all_responses_and_closing_it_cancels(
    servables: Servables, backend: MemoryBackend
) -> None:
    stop = asyncio.Event()

    async def count(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
        for number in range(3):
            replies.send(0, InferResponse("echo", 1, parameters={"n": number}, final=False))
        await stop.wait()
        assert replies.cancelled(0) == bool(instance.cancelled)
        replies.send(0, InferResponse("echo", 1))

    backend.work = count
    await servables.add(echo_config(), version(1))
    stop.set()
    responses = [response async for response in servables.stream(request_of("echo"))]
    assert [response.parameters.get("n") for response in responses] == [0, 1, 2, None]
    stop.clear()
    request = request_of("echo")
    stream = servables.stream(request)
    await anext(stream)
    await stream.aclose()
    await asyncio.sleep(0.01)
    assert backend.instances[0].cancelled == [request]
    stop.set()


async def test_what_is_not_there_is_said_in_tritons_words(servables: Servables) -> None:
    await servables.add(echo_config(), version(1))
    await servables.add(echo_config("gone"), version(1))
    await servables.remove("gone")
    await servables.settled()
    for name, number, text in (
        ("nope", None, "Request for unknown model: 'nope' is not found"),
        ("echo", 9, "Request for unknown model: 'echo' version 9 is not found"),
        ("gone", None, "Request for unknown model: 'gone' has no available versions"),
    ):
        with pytest.raises(ServableError) as caught:
            servables.find(name, number)
        assert (caught.value.code, caught.value.message) == ("not_found", text)
    assert servables.index() == [
        IndexEntry("echo", 1, "READY"),
        IndexEntry("gone", 1, "UNAVAILABLE", "unloaded"),
    ]


async def test_the_newest_version_answers_and_a_named_one_when_asked(servables: Servables) -> None:
    for number in (1, 10, 9):
        await servables.add(echo_config(), version(number))
    assert (await servables.infer(request_of("echo"))).version == 10
    assert (await servables.infer(request_of("echo", version=9))).version == 9
    await servables.remove("echo", 10)
    assert (await servables.infer(request_of("echo"))).version == 9


async def test_a_version_that_fails_to_load_leaves_the_old_one_serving(
    servables: Servables, backend: MemoryBackend
) -> None:
    await servables.add(echo_config(), version(1))
    backend.load_failures.append("no such file")
    with pytest.raises(ServableError, match="no such file"):
        await servables.add(echo_config(), version(1))
    assert (await servables.infer(request_of("echo"))).version == 1
    backend.load_failures.append("no such file")
    with pytest.raises(ServableError, match="no such file"):
        await servables.add(echo_config("broken"), version(1))
    assert servables.index()[0] == IndexEntry("broken", 1, "UNAVAILABLE", "Internal: no such file")


@pytest.mark.parametrize("batching", [None, DynamicBatching(), DynamicBatching(preserve_ordering=True)])
async def test_loading_and_unloading_a_thousand_times_under_traffic_loses_no_request(
    servables: Servables, backend: MemoryBackend, batching: DynamicBatching | None
) -> None:
    groups = (InstanceGroup("g", 2 if batching else 1),)
    config = replace(echo_config(), max_batch_size=4, dynamic_batching=batching, instance_groups=groups)

    async def slow(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
        await asyncio.sleep(0)
        await echo(instance, requests, replies)

    backend.work = slow
    await servables.add(config, version(1))
    stop = False
    num_answers = 0

    async def client(number: int) -> None:
        nonlocal num_answers
        while not stop:
            asked = None if number % 2 else servables.find("echo").version
            answer = await servables.infer(request_of("echo", [[number]], version=asked))
            assert answer.outputs["X"].array.tolist() == [[number]]
            assert asked in (None, answer.version)
            num_answers += 1

    async with asyncio.TaskGroup() as tasks:
        for number in range(8):
            tasks.create_task(client(number))
        for turn in range(1000):
            await servables.add(config, version(2 + turn % 3))
            await servables.remove("echo", 2 + turn % 3 if turn % 2 else 1)
            await servables.add(config, version(1))
        stop = True
    await servables.settled()
    assert num_answers > 1000
    num_closed = sum(instance.is_closed for instance in backend.instances)
    assert len(backend.instances) - num_closed == groups[0].count * len(servables.versions("echo"))


async def test_a_servable_that_is_gone_refuses_whoever_still_has_it(servables: Servables) -> None:
    servable = await servables.add(echo_config(), version(1))
    await servables.remove("echo")
    await servables.settled()
    with pytest.raises(ServableError, match="model 'echo' version 1 was unloaded"):
        await servable.infer(request_of("echo"))

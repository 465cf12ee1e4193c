"""What is counted, and by which rule; in virtual time, so that durations are exact."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from millpond.serve.servables.backend import ExecutionTiming, ModelFolder, Replies
from millpond.serve.servables.config import DynamicBatching
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.registry import Servables
from millpond.serve.servables.statistics import Durations
from tests.support.memory_backend import MemoryBackend, MemoryInstance, echo, echo_config, request_of, tensor
from tests.support.virtual_time import clock, run

V1 = ModelFolder(None, 1)


async def second(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> ExecutionTiming:
    await asyncio.sleep(1)
    await echo(instance, requests, replies)
    return ExecutionTiming(100_000_000, 800_000_000, 100_000_000)


def test_requests_count_rows_and_time_and_executions_count_once() -> None:
    async def main() -> None:
        servables = Servables({"memory": MemoryBackend(second)}, clock=clock)
        config = replace(echo_config("m"), max_batch_size=8, dynamic_batching=DynamicBatching())
        await servables.add(config, V1)
        await asyncio.gather(servables.infer(request_of("m", [[1]])), servables.infer(request_of("m", [[1], [2]])))
        await asyncio.gather(*(servables.infer(request_of("m", [[1]] * 5)) for _ in range(2)))
        (statistics,) = servables.statistics("m")
        assert (statistics.name, statistics.version) == ("m", 1)
        assert (statistics.inference_count, statistics.execution_count) == (13, 3)
        assert statistics.success == Durations(4, 5_000_000_000)
        assert statistics.queue == Durations(4, 1_000_000_000)
        assert statistics.compute_infer == Durations(4, 3_200_000_000)
        assert statistics.compute_input == statistics.compute_output == Durations(4, 400_000_000)
        assert {rows: batch.compute_infer.count for rows, batch in statistics.batches.items()} == {3: 1, 5: 2}
        assert (statistics.responses, statistics.pending) == ({}, 0)
        assert statistics.last_inference_ms > 0
        await servables.close()

    run(main())


def test_failures_are_counted_by_reason_and_pending_while_they_wait() -> None:
    async def main() -> None:
        async def work(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
            await asyncio.sleep(1)
            raise ServableError("internal", "no")

        servables = Servables({"memory": MemoryBackend(work)}, clock=clock)
        await servables.add(echo_config("m"), V1)
        asked = [asyncio.create_task(servables.infer(request_of("m"))) for _ in range(3)]
        await asyncio.sleep(0.5)
        statistics = servables.find("m").statistics
        assert statistics.pending == 2
        asked[0].cancel()
        asked[2].cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert statistics.pending == 1
        await asyncio.gather(*asked, return_exceptions=True)
        assert {reason: count for reason, count in statistics.failures.items() if count} == {
            "CANCELED": 2,
            "BACKEND": 1,
        }
        assert (statistics.fail.count, statistics.success.count, statistics.inference_count) == (3, 0, 0)
        await servables.close()

    run(main())


def test_responses_of_a_stream_are_counted_by_their_place() -> None:
    async def main() -> None:
        async def work(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
            for _ in range(2):
                await asyncio.sleep(1)
                replies.send(0, InferResponse("m", 1, {"X": tensor("X", [1])}, final=False))
            await asyncio.sleep(3)
            replies.send(0, InferResponse("m", 1))

        servables = Servables({"memory": MemoryBackend(work)}, clock=clock)
        await servables.add(replace(echo_config("m"), decoupled=True), V1)
        for _ in range(2):
            assert len([response async for response in servables.stream(request_of("m"))]) == 3
        responses = servables.find("m").statistics.responses
        assert {index: one.success for index, one in responses.items()} == {
            0: Durations(2, 2_000_000_000),
            1: Durations(2, 2_000_000_000),
            2: Durations(),
        }
        assert responses[2].empty_response == Durations(2, 6_000_000_000)
        assert responses[0].compute_infer == responses[0].success
        await servables.close()

    run(main())


async def test_statistics_of_what_is_not_there_are_refused_in_tritons_words() -> None:
    servables = Servables({"memory": MemoryBackend(echo)})
    await servables.add(echo_config("m"), V1)
    assert len(servables.statistics()) == len(servables.statistics("m", 1)) == 1
    with pytest.raises(ServableError) as caught:
        servables.statistics("nope")
    assert (caught.value.code, caught.value.message) == (
        "invalid_argument",
        "requested model 'nope' is not available",
    )
    with pytest.raises(ServableError, match="requested model version is not available for model 'm'"):
        servables.statistics("m", 2)
    await servables.close()

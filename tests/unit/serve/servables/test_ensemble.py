"""Ensembles: data flow, side by side, streams, errors; results against the same computation without an ensemble."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from millpond.serve.servables.backend import ModelFolder, Replies
from millpond.serve.servables.config import EnsembleStep, InstanceGroup, ServableConfig
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.messages import InferRequest, InferResponse
from millpond.serve.servables.registry import Servables
from millpond.serve.servables.tensors import Tensor, TensorSpec
from tests.support.memory_backend import MemoryBackend, MemoryInstance, request_of
from tests.support.virtual_time import clock, run


def spec(name: str, *, optional: bool = False) -> TensorSpec:
    return TensorSpec(name, "INT32", (-1,), optional=optional)


def simple_config(name: str = "simple") -> ServableConfig:
    """A and B to their SUM and DIFF."""
    return ServableConfig(name, "memory", (spec("A"), spec("B", optional=True)), (spec("SUM"), spec("DIFF")))


async def simple(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
    for index, request in enumerate(requests):
        a = request.inputs["A"].array
        b = request.inputs["B"].array if "B" in request.inputs else np.zeros_like(a)
        made = {"SUM": a + b, "DIFF": a - b}  # type: ignore[operator]  # np.generic has no sums
        wanted = request.outputs or tuple(made)
        outputs = {name: Tensor(name, "INT32", array) for name, array in made.items() if name in wanted}
        replies.send(index, InferResponse(instance.config.name, instance.version, outputs))


def step(inputs: str, outputs: str, model: str = "simple") -> EnsembleStep:
    """Maps written as "A=x B=y"."""
    parts = [dict(pair.split("=") for pair in text.split()) for text in (inputs, outputs)]
    return EnsembleStep(model, None, parts[0], parts[1])


def ensemble(*steps: EnsembleStep, name: str = "ens", inputs: str = "X", outputs: str = "Y") -> ServableConfig:
    return ServableConfig(
        name, "ensemble", tuple(map(spec, inputs.split())), tuple(map(spec, outputs.split())), ensemble=steps
    )


V1 = ModelFolder(None, 1)
TWICE = (step("A=X B=X", "SUM=mid DIFF=zero"), step("A=mid B=zero", "SUM=Y"))


@pytest.fixture
async def backend() -> MemoryBackend:
    return MemoryBackend(simple)


@pytest.fixture
async def servables(backend: MemoryBackend) -> AsyncIterator[Servables]:
    made = Servables({"memory": backend})
    await made.add(simple_config(), V1)
    yield made
    await made.close()


async def test_tensors_flow_from_step_to_step(servables: Servables) -> None:
    await servables.add(ensemble(*TWICE), V1)
    response = await servables.infer(request_of("ens", range(16), request_id="r"))
    assert (response.model, response.version, response.final) == ("ens", 1, True)
    assert response.outputs["Y"].name == "Y"
    assert response.outputs["Y"].array.tolist() == [2 * n for n in range(16)]
    statistics = servables.find("ens").statistics
    assert (statistics.success.count, statistics.execution_count, statistics.inference_count) == (1, 1, 1)
    assert servables.find("simple").statistics.success.count == 2


async def test_only_the_steps_that_an_asked_output_needs_run(servables: Servables, backend: MemoryBackend) -> None:
    await servables.add(ensemble(*TWICE, step("A=X", "SUM=Z"), outputs="Y Z"), V1)
    response = await servables.infer(request_of("ens", [4], outputs=("Z",)))
    assert {name: tensor.array.tolist() for name, tensor in response.outputs.items()} == {"Z": [4]}
    assert len(backend.instances[0].batches) == 1


async def test_an_optional_input_may_stay_away_all_the_way(servables: Servables) -> None:
    config = replace(ensemble(step("A=X B=W", "DIFF=Y")), inputs=(spec("X"), spec("W", optional=True)))
    await servables.add(config, V1)
    assert (await servables.infer(request_of("ens", [4]))).outputs["Y"].array.tolist() == [4]


def test_independent_steps_run_side_by_side() -> None:
    async def main() -> float:
        async def slow(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
            await asyncio.sleep(1.0)
            await simple(instance, requests, replies)

        servables = Servables({"memory": MemoryBackend(slow, concurrency=2)}, clock=clock)
        await servables.add(simple_config(), V1)
        await servables.add(ensemble(step("A=X", "SUM=l"), step("A=X", "DIFF=r"), step("A=l B=r", "SUM=Y")), V1)
        begun = clock()
        response = await servables.infer(request_of("ens", [3]))
        assert response.outputs["Y"].array.tolist() == [6]
        await servables.close()
        return (clock() - begun) / 1e9

    assert run(main()) == pytest.approx(2.0)


async def test_a_steps_error_says_where_it_came_from(servables: Servables, backend: MemoryBackend) -> None:
    await servables.add(ensemble(*TWICE), V1)

    async def broken(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
        raise ServableError("internal", "out of ink")

    backend.work = broken
    with pytest.raises(ServableError) as caught:
        await servables.infer(request_of("ens"))
    assert (caught.value.code, caught.value.message) == ("internal", "in ensemble 'ens', out of ink")
    assert servables.find("ens").statistics.fail.count == 1
    await servables.remove("simple")
    with pytest.raises(ServableError, match="in ensemble 'ens', Request for unknown model: 'simple' has no available"):
        await servables.infer(request_of("ens"))


async def test_an_output_that_a_step_leaves_out_is_an_error_and_not_a_wait(
    servables: Servables, backend: MemoryBackend
) -> None:
    async def silent(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
        replies.send(0, InferResponse("simple", 1))

    backend.work = silent
    await servables.add(ensemble(*TWICE), V1)
    with pytest.raises(ServableError, match="in ensemble 'ens', unexpected deadlock, at least one output is not set"):
        await servables.infer(request_of("ens"))


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (ensemble(step("A=nowhere", "SUM=Y")), "no input and no step makes the tensor 'nowhere'"),
        (ensemble(step("A=X", "SUM=Z")), "no input and no step makes the tensor 'Y'"),
        (ensemble(step("A=X", "SUM=Y DIFF=Y")), "tensor 'Y' is made twice"),
    ],
)
async def test_steps_that_do_not_fit_together_are_not_loaded(
    servables: Servables, config: ServableConfig, text: str
) -> None:
    with pytest.raises(ServableError, match=text):
        await servables.add(config, V1)


async def test_an_ensemble_inside_itself_ends(servables: Servables) -> None:
    await servables.add(ensemble(step("X=X", "Y=Y", model="ens")), V1)
    with pytest.raises(ServableError, match="ensembles are nested too deeply"):
        await servables.infer(request_of("ens"))


async def add_counter(servables: Servables, backend: MemoryBackend, *, count_instances: int = 1) -> None:
    """`count` streams 0..X-1; `twice` doubles, the smaller the slower."""

    async def work(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
        (request,) = requests
        if instance.config.name == "twice":
            number = int(request.inputs["X"].array[0])
            for _ in range(20 - number):
                await asyncio.sleep(0)
            array = np.array([2 * number], np.int32)
            replies.send(0, InferResponse("twice", 1, {"Y": Tensor("Y", "INT32", array)}))
            return
        for number in range(int(request.inputs["X"].array[0])):
            if replies.cancelled(0):
                break
            array = np.array([number], np.int32)
            replies.send(0, InferResponse("count", 1, {"Y": Tensor("Y", "INT32", array)}, final=False))
            await asyncio.sleep(0)
        replies.send(0, InferResponse("count", 1))

    backend.work = work
    config = ServableConfig("count", "memory", (spec("X"),), (spec("Y"),), decoupled=True)
    await servables.add(config, V1)
    groups = (InstanceGroup("g", count_instances),)
    await servables.add(replace(config, name="twice", decoupled=False, instance_groups=groups), V1)
    steps = (step("X=X", "Y=n", model="count"), step("X=n", "Y=Y", model="twice"))
    await servables.add(replace(ensemble(*steps), decoupled=True), V1)


@pytest.mark.parametrize("count_instances", [1, 4])
async def test_a_stream_in_front_makes_a_stream_behind_in_its_order(
    servables: Servables, backend: MemoryBackend, count_instances: int
) -> None:
    await add_counter(servables, backend, count_instances=count_instances)
    responses = [response async for response in servables.stream(request_of("ens", [10]))]
    assert [int(r.outputs["Y"].array[0]) for r in responses[:-1]] == [2 * n for n in range(10)]
    assert [r.final for r in responses] == [False] * 10 + [True]
    assert responses[-1].outputs == {}
    nothing = [response async for response in servables.stream(request_of("ens", [0]))]
    assert [r.final for r in nothing] == [True]


async def test_giving_up_cancels_the_steps(servables: Servables, backend: MemoryBackend) -> None:
    await add_counter(servables, backend)
    stream = servables.stream(request_of("ens", [1_000_000]))
    await anext(stream)
    await stream.aclose()
    async with asyncio.timeout(10):
        while any(servables.find(name).num_open for name in ("ens", "count", "twice")):
            await asyncio.sleep(0)
    assert servables.find("count").statistics.failures["CANCELED"] == 1
    assert servables.find("ens").statistics.failures["CANCELED"] == 1


async def test_parts_that_are_removed_stay_until_the_ensembles_requests_are_answered(
    servables: Servables, backend: MemoryBackend
) -> None:
    async def slow(instance: MemoryInstance, requests: Sequence[InferRequest], replies: Replies) -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        await simple(instance, requests, replies)

    backend.work = slow
    for _ in range(50):
        await servables.add(ensemble(*TWICE), V1)
        asked = [asyncio.create_task(servables.infer(request_of("ens", [n]))) for n in range(3)]
        await asyncio.sleep(0)
        await servables.remove("ens")
        await servables.remove("simple")
        responses = await asyncio.gather(*asked)
        assert [int(response.outputs["Y"].array[0]) for response in responses] == [0, 2, 4]
        await servables.settled()
        assert all(instance.is_closed for instance in backend.instances)
        await servables.add(simple_config(), V1)

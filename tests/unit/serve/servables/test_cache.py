"""The response cache: what counts as the same request, what goes first, and that no answer is stale."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from millpond.serve.servables.backend import ModelFolder
from millpond.serve.servables.cache import ResponseCache, key_of
from millpond.serve.servables.limits import ServableLimits
from millpond.serve.servables.messages import InferRequest
from millpond.serve.servables.registry import Servables
from millpond.serve.servables.tensors import Tensor
from tests.support.memory_backend import MemoryBackend, echo, echo_config, request_of, tensor

V1 = ModelFolder(None, 1)
CONFIG = replace(echo_config("m"), response_cache=True)


@pytest.fixture
async def backend() -> MemoryBackend:
    return MemoryBackend(echo)


@pytest.fixture
async def servables(backend: MemoryBackend) -> AsyncIterator[Servables]:
    made = Servables({"memory": backend}, ServableLimits(cache_bytes=1 << 20))
    yield made
    await made.close()


async def test_the_same_request_is_executed_once(servables: Servables, backend: MemoryBackend) -> None:
    await servables.add(CONFIG, V1)
    request = request_of("m", [1, 2])
    for _ in range(3):
        response = await servables.infer(request_of("m", [1, 2], request_id="x"))
        assert response.outputs["X"].array.tolist() == [1, 2]
    request.inputs["X"].array[...] = 9  # the memory of a request may be used again for another
    assert (await servables.infer(request_of("m", [1, 2]))).outputs["X"].array.tolist() == [1, 2]
    assert len(backend.instances[0].batches) == 1
    statistics = servables.find("m").statistics
    assert (statistics.success.count, statistics.inference_count, statistics.execution_count) == (4, 1, 1)
    assert (statistics.cache_hit.count, statistics.cache_miss.count) == (3, 1)
    assert servables.cache is not None
    assert (servables.cache.num_entries, servables.cache.statistics.num_hits) == (1, 3)


async def test_loading_again_forgets(servables: Servables, backend: MemoryBackend) -> None:
    for count in (1, 2):
        await servables.add(CONFIG, V1)
        await servables.infer(request_of("m"))
        assert sum(len(instance.batches) for instance in backend.instances) == count


async def test_only_servables_that_ask_for_it_are_cached(servables: Servables, backend: MemoryBackend) -> None:
    await servables.add(replace(CONFIG, response_cache=False), V1)
    for _ in range(2):
        await servables.infer(request_of("m"))
    assert len(backend.instances[0].batches) == 2


def texts(*items: bytes) -> Tensor:
    return Tensor("X", "BYTES", np.array([*items, None], object)[:-1])


def test_requests_that_differ_have_different_keys() -> None:
    requests = [
        request_of("m", [1, 2]),
        request_of("m", [2, 1]),
        request_of("m", [[1, 2]]),
        InferRequest("m", {"Y": tensor("Y", [1, 2])}),
        InferRequest("m", {"X": tensor("X", [1, 2], "uint32")}),
        InferRequest("m", {"X": texts(b"ab", b"c")}),
        InferRequest("m", {"X": texts(b"a", b"bc")}),
        request_of("m", [1, 2], outputs=("X",)),
        request_of("m", [1, 2], parameters={"p": 1}),
        request_of("m", [1, 2], method="other"),
    ]
    keys = [key_of(request, tag) for request in requests for tag in (b"1", b"2")]
    assert len(set(keys)) == len(keys)
    assert key_of(request_of("m", [1, 2], request_id="a", timeout_us=5), b"1") == keys[0]


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.booleans(), st.integers(0, 400)), max_size=60))
def test_the_least_recently_used_goes_first(steps: list[tuple[int, bool, int]]) -> None:
    cache = ResponseCache(4096)
    model: OrderedDict[int, int] = OrderedDict()
    for key, is_put, length in steps:
        if is_put:
            cache.put(bytes([key]), {"X": tensor("X", [0] * length)})
            size = 512 + 4 * length
            model.pop(key, None)
            while sum(model.values()) + size > 4096:
                model.popitem(last=False)
            model[key] = size
        elif cache.get(bytes([key])) is not None:
            model.move_to_end(key)
        assert [entry[0] for entry in cache._entries] == list(model)
        assert cache.used_bytes == sum(model.values()) <= cache.size_bytes


def test_an_answer_larger_than_the_cache_is_not_kept() -> None:
    cache = ResponseCache(1024)
    cache.put(b"small", {"X": tensor("X", [1])})
    cache.put(b"large", {"X": tensor("X", [1] * 1000)})
    assert cache.get(b"large") is None
    assert cache.get(b"small") is not None

"""A Python class of `millpond.serving` answers MindSpore's clients too: its methods are the protocol's methods."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import pytest_asyncio

from millpond.compat.mindspore_serving.client import Client
from millpond.serve.backends.in_workers import make_worker_backends
from millpond.serve.backends.worker_instance import WorkerSurroundings
from millpond.serve.grpc.mindspore.port import MindSporeGrpcPort
from millpond.serve.http.mindspore.port import MindSporeRestPort
from millpond.serve.mindspore.dispatch import Dispatcher
from millpond.serve.servables.backend import ModelFolder
from millpond.serve.servables.config import DynamicBatching, ServableConfig
from millpond.serve.servables.registry import Servables

SERVABLE = '''
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from millpond.serving import Servable, method


class Texts(Servable):
    max_batch_size = 4

    @method(output="text")
    def repeat(self, text: str, times: int = 2) -> str:
        return text * times

    @method(output="total")
    def total(self, values: NDArray[np.float64]) -> float:
        return float(values.sum())

    @method(output="word")
    def split(self, text: str) -> Iterator[str]:
        yield from text.split()
'''


@pytest_asyncio.fixture
async def addresses(tmp_path: Path) -> AsyncIterator[tuple[str, str]]:
    (tmp_path / "1").mkdir()
    (tmp_path / "1" / "servable.py").write_text(SERVABLE)
    servables = Servables(make_worker_backends(WorkerSurroundings()))
    config = ServableConfig("texts", "stages", (), (), dynamic_batching=DynamicBatching())
    await servables.add(config, ModelFolder(tmp_path, 1))
    dispatcher = Dispatcher(servables)
    ports = MindSporeRestPort(dispatcher, "127.0.0.1", 0), MindSporeGrpcPort(dispatcher, "127.0.0.1:0")
    for port in ports:
        await port.start()
    try:
        yield ports[0].address, ports[1].address
    finally:
        for port in ports:
            await port.stop()
        await servables.close()


@pytest.mark.parametrize(
    ("method", "instances", "expected"),
    [
        ("repeat", [{"text": "ab"}, {"text": "c", "times": 3}], [{"text": "abab"}, {"text": "ccc"}]),
        ("total", {"values": [1, 2, 3]}, [{"total": 6.0}]),
        ("total", {"values": [1.5, 2.5]}, [{"total": 4.0}]),
    ],
)
async def test_json_becomes_the_types_a_method_declares(
    addresses: tuple[str, str], method: str, instances: Any, expected: Any
) -> None:
    async with httpx.AsyncClient(timeout=60) as client:
        url = f"http://{addresses[0]}/model/texts:{method}"
        reply = await client.post(url, json={"instances": instances}, timeout=30)
    answered = reply.json()["instances"]
    assert [{name: np.ravel(value)[0] for name, value in one.items()} for one in answered] == expected


async def test_a_method_that_yields_streams(addresses: tuple[str, str]) -> None:
    def words() -> list[Any]:
        with Client(addresses[1], "texts", "split") as client:
            return [np.ravel(item["word"])[0] for item in client.infer_stream({"text": "one two three"})]

    assert await asyncio.to_thread(words) == ["one", "two", "three"]
    async with httpx.AsyncClient(timeout=60) as client:
        url = f"http://{addresses[0]}/model/texts:split"
        reply = await client.post(url, json={"instances": {"text": "a b"}}, timeout=30)
    assert reply.text.count("data: {") == 2
    assert reply.text.endswith("data: [DONE]\n\n")

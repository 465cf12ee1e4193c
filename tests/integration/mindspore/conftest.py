"""A registry with servables of several kinds, and both ports over it on the test's own loop."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass

import numpy as np
import pytest_asyncio

from millpond.serve.grpc.mindspore.port import MindSporeGrpcPort
from millpond.serve.http.mindspore.app import RestSettings
from millpond.serve.http.mindspore.port import MindSporeRestPort
from millpond.serve.mindspore.dispatch import Dispatcher
from millpond.serve.servables.backend import ModelFolder
from millpond.serve.servables.config import DynamicBatching, InstanceGroup, MethodSpec, ServableConfig
from millpond.serve.servables.errors import ServableError
from millpond.serve.servables.registry import Servables
from millpond.serve.servables.tensors import TensorSpec
from tests.support.method_backend import MethodBackend, WordsBackend


@dataclass
class Room:
    """What a test gets."""

    servables: Servables
    methods: MethodBackend
    words: WordsBackend
    dispatcher: Dispatcher
    rest: str
    strict: str
    grpc: str


def add(x1, x2):  # type: ignore[no-untyped-def]  # a stand-in
    if np.any(np.asarray(x1) == 13):
        raise ServableError("internal", "Call Function 'add.check' Failed, unlucky")
    return {"y": np.asarray(x1 + x2)}


def make_methods() -> MethodBackend:
    return MethodBackend(
        {
            "add_common": (MethodSpec("add_common", ("x1", "x2"), ("y",)), add),
            "pass_on": (MethodSpec("pass_on", ("x",), ("x",)), lambda x: {"x": x}),
        }
    )


@pytest_asyncio.fixture
async def room() -> AsyncIterator[Room]:
    methods, words = make_methods(), WordsBackend()
    servables = Servables({"methods": methods, "words": words})
    for version in (1, 2):
        config = ServableConfig(
            "add",
            "methods",
            (),
            (),
            max_batch_size=4,
            instance_groups=(InstanceGroup("add", count=2),),
            dynamic_batching=DynamicBatching(),
        )
        await servables.add(config, ModelFolder(None, version))
    text_in = TensorSpec("text_input", "BYTES", (1,))
    optional = TensorSpec("sampling_parameters", "BYTES", (1,), optional=True)
    stream = TensorSpec("stream", "BOOL", (1,), optional=True)
    config = ServableConfig(
        "LLaMA",
        "words",
        (text_in, stream, optional),
        (TensorSpec("text_output", "BYTES", (-1,)),),
        max_batch_size=4,
        decoupled=True,
    )
    await servables.add(config, ModelFolder(None, 1))
    dispatcher = Dispatcher(servables)
    settings = RestSettings(max_body_bytes=1 << 20)
    strict = RestSettings(max_body_bytes=1 << 20, is_strict=True)
    ports = [
        MindSporeRestPort(dispatcher, "127.0.0.1", 0, settings=settings),
        MindSporeRestPort(dispatcher, "127.0.0.1", 0, settings=strict),
        MindSporeGrpcPort(dispatcher, "127.0.0.1:0", max_message_bytes=1 << 20),
    ]
    for port in ports:
        await port.start()
    rest, strict_address, grpc_address = (port.address for port in ports)
    try:
        yield Room(
            servables, methods, words, dispatcher, f"http://{rest}", f"http://{strict_address}", grpc_address
        )
    finally:
        for port in ports:
            await port.stop()
        await servables.close()

"""The shard's socket: made for its owner, in place of one that a dead shard left, never in place of anything else."""

from __future__ import annotations

import asyncio
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc.aio
import pytest

from millpond.base.errors import ConfigError
from millpond.serve.gateway import Gateway
from millpond.serve.grpc.tgi_shard.port import ShardPort
from millpond.serve.proto import generate_pb2 as pb
from tests.support.scripted_engine import ScriptedEngine
from tests.support.shard_client import SERVICE, make_request


@pytest.fixture
def prefix() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as directory:
        yield f"{directory}/shard"


async def prefill(channel: grpc.aio.Channel, request: pb.PrefillRequest) -> pb.PrefillResponse:
    method = channel.unary_unary(
        f"{SERVICE}Prefill", pb.PrefillRequest.SerializeToString, pb.PrefillResponse.FromString
    )
    return await method(request, timeout=30)


async def test_a_socket_that_a_dead_shard_left_is_replaced(gateway: Gateway, prefix: str) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(f"{prefix}-0")
    port = ShardPort(gateway, prefix)
    await port.start()
    assert port.address == f"unix://{prefix}-0"
    await port.stop()
    assert not Path(f"{prefix}-0").exists()


async def test_a_shard_that_lives_and_a_file_are_left_alone(gateway: Gateway, prefix: str) -> None:
    port = ShardPort(gateway, prefix)
    await port.start()
    with pytest.raises(ConfigError, match="another shard answers there"):
        await ShardPort(gateway, prefix).start()
    await port.stop()
    Path(f"{prefix}-0").write_text("mine")
    with pytest.raises(ConfigError, match="something that is no socket"):
        await ShardPort(gateway, prefix).start()
    assert Path(f"{prefix}-0").read_text() == "mine"


async def test_a_path_that_is_too_long_or_in_no_folder_is_a_clear_error(gateway: Gateway, prefix: str) -> None:
    with pytest.raises(ConfigError, match="longer than 100 bytes"):
        await ShardPort(gateway, f"{prefix}{'x' * 100}").start()
    with pytest.raises(ConfigError, match=r"tgi|cannot be made"):
        await ShardPort(gateway, f"{prefix}/nowhere/shard").start()


async def test_a_call_that_is_left_ends_its_sequences(gateway: Gateway, engine: ScriptedEngine, prefix: str) -> None:
    engine.stop_at = 0
    port = ShardPort(gateway, prefix)
    await port.start()
    async with grpc.aio.insecure_channel(f"unix:{prefix}-0") as channel:
        batch = pb.Batch(id=1, requests=[make_request(1, "x"), make_request(2, "y")])
        left = asyncio.ensure_future(prefill(channel, pb.PrefillRequest(batch=batch)))
        while len(engine.requests) < 2:
            await asyncio.sleep(0.001)
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        while len(engine.closed) < 2:
            await asyncio.sleep(0.001)
    assert port.service.batches.num_sequences == 0
    await port.stop()


async def test_there_are_as_many_sequences_as_the_engine_has_places(
    gateway: Gateway, engine: ScriptedEngine, prefix: str
) -> None:
    port = ShardPort(gateway, prefix)
    await port.start()
    async with grpc.aio.insecure_channel(f"unix:{prefix}-0") as channel:
        many = [make_request(number, "x") for number in range(33)]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await prefill(channel, pb.PrefillRequest(batch=pb.Batch(id=1, requests=many)))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        gateway.engine = None
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await prefill(channel, pb.PrefillRequest(batch=pb.Batch(id=1, requests=many[:1])))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    await port.stop()

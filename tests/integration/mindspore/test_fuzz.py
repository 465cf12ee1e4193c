"""Bodies, messages and connections of every broken kind: the right error, and other clients are served on."""

from __future__ import annotations

import asyncio
import json
import random
from typing import Any

import grpc
import httpx
import pytest

from millpond.serve.proto import ms_service_pb2 as pb
from tests.integration.mindspore.conftest import Room

PREDICT = "/mindspore.serving.proto.MSService/Predict"
GOOD = {"instances": [{"x1": [[1, 2]], "x2": [[3, 4]]}, {"x1": 1.5, "x2": 2.5}]}
ODD: list[Any] = [
    *(None, True, -1, 2**31, 2**64, 10**400, 1e308, -0.0, "", "é\u0000", "x" * 3000),
    *([], [[]], [None], [[1], 2], {}, {"b64": "AAAA"}, {"b64": "A"}, {"b64": None}),
    {"b64": "AAAA", "type": "int32", "shape": [1]},
    {"b64": "AAAA", "type": "int32", "shape": [10**9, 10**9]},
    {"b64": "", "type": "float64", "shape": [0]},
    {"b64": "AAAA", "type": "fp16", "shape": [-2]},
]


def mutate(rng: random.Random, value: Any) -> Any:
    if rng.random() < 0.25:
        return rng.choice(ODD)
    if isinstance(value, dict):
        changed = {name: mutate(rng, item) for name, item in value.items()}
        if rng.random() < 0.2 and changed:
            changed.pop(rng.choice(list(changed)))
        if rng.random() < 0.2:
            changed[rng.choice(["", "b64", "instances", "x1", "../x"])] = rng.choice(ODD)
        return changed
    if isinstance(value, list):
        return [mutate(rng, item) for item in value for _ in range(rng.choice([1, 1, 1, 0, 2]))]
    return value


def bodies(count: int) -> list[bytes]:
    rng = random.Random(4)
    made: list[bytes] = []
    for _ in range(count):
        body = json.dumps(mutate(rng, GOOD)).encode()
        if rng.random() < 0.3:
            cut = rng.randrange(len(body) + 1)
            body = body[:cut] + bytes(rng.randrange(256) for _ in range(rng.randrange(4))) + body[cut + 1 :]
        made.append(body)
    return made


PATHS = [
    *("/model/add:add_common", "/model/add/version/1:add_common", "/model/..%2f..%2fetc:add_common"),
    *("/model/%00:add_common", "/model/:x", "/", "/model/add:", "/version/x/model/add:pass_on"),
    *("/model/LLaMA:generate", "/model/LLaMA:generated_stream", "/model/add/version/99999999999999999999:add_common"),
]


async def test_any_body_to_any_path_has_an_answer_and_no_server_error(room: Room) -> None:
    rng = random.Random(5)
    async with httpx.AsyncClient(timeout=30) as client:
        for body in bodies(200):
            path = rng.choice(PATHS)
            reply = await client.post(room.strict + path, content=body)
            assert reply.status_code in (200, 400, 404), (path, body, reply.text)
            if not reply.headers["content-type"].startswith("text/event-stream"):
                assert isinstance(reply.json(), dict)
        reply = await client.post(f"{room.rest}/model/add:add_common", json=GOOD)
        assert reply.json() == {"instances": [{"y": [[4, 6]]}, {"y": 4.0}]}
    assert room.dispatcher.num_open == 0


async def test_any_message_has_an_answer(room: Room) -> None:
    rng = random.Random(6)
    good = pb.PredictRequest(servable_spec=pb.ServableSpec(name="add", method_name="add_common"))
    tensor = pb.Tensor(dtype=pb.MS_INT32, shape=pb.TensorShape(dims=[2]), data=b"\1\0\0\0\2\0\0\0")
    for _ in range(2):
        instance = good.instances.add()
        instance.items["x1"].CopyFrom(tensor)
        instance.items["x2"].CopyFrom(tensor)
    whole = good.SerializeToString()
    refused = 0
    async with grpc.aio.insecure_channel(room.grpc) as channel:
        call = channel.unary_unary(PREDICT, lambda data: data, pb.PredictReply.FromString)
        for _ in range(200):
            data = bytearray(whole)
            for _ in range(rng.randrange(1, 4)):
                data[rng.randrange(len(data))] = rng.randrange(256)
            if rng.random() < 0.3:
                del data[rng.randrange(len(data)) :]
            running = call(bytes(data))
            if await running.code() is grpc.StatusCode.OK:
                assert all(error.error_code in (0, 1, 2) for error in (await running).error_msg)
            else:
                assert await running.code() is grpc.StatusCode.INTERNAL
                refused += 1
        reply = await call(whole)
        assert [instance.items["y"].data for instance in reply.instances] == [b"\2\0\0\0\4\0\0\0"] * 2
    assert 0 < refused < 200


async def test_messages_that_are_too_large_are_refused(room: Room) -> None:
    async with grpc.aio.insecure_channel(room.grpc) as channel:
        call = channel.unary_unary(PREDICT, lambda data: data, pb.PredictReply.FromString)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"\0" * ((1 << 20) + 1))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def send_raw(room: Room, data: bytes, *, half_close: bool = False) -> bytes:
    host, _, port = room.rest.removeprefix("http://").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    await writer.drain()
    if half_close:
        writer.write_eof()
    try:
        async with asyncio.timeout(60):
            return await reader.read(65536)
    except (TimeoutError, ConnectionError):
        return b""
    finally:
        writer.close()


async def test_broken_connections_harm_nobody(room: Room) -> None:
    head = b"POST /model/add:pass_on HTTP/1.1\r\nHost: localhost\r\nContent-Length: 40\r\n\r\n"
    replies = await asyncio.gather(
        send_raw(room, b"\x16\x03\x01\x02\x00garbage\r\n\r\n"),
        send_raw(room, b"GET / HTTP/9.9\r\n\r\n"),
        send_raw(room, head + b'{"instances"', half_close=True),
        send_raw(room, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -5\r\n\r\n"),
        send_raw(room, b"POST / HTTP/1.1\r\nX: " + b"y" * 200_000 + b"\r\n\r\n"),
    )
    assert replies[0].startswith(b"HTTP/1.1 400")
    assert replies[4].startswith(b"HTTP/1.1 400")
    async with httpx.AsyncClient(timeout=60) as client:
        reply = await client.post(f"{room.rest}/model/add:pass_on", json={"instances": {"x": 1}})
    assert reply.json() == {"instances": [{"x": 1}]}
    async with asyncio.timeout(60):
        while room.dispatcher.num_open:
            await asyncio.sleep(0.01)

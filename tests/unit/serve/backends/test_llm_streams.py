"""A language model as a servable, streamed over every port: nothing waits, nothing is lost, nothing is left behind."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc.aio
import pytest

from millpond.inference.text import TextModel
from millpond.serve.proto import inference_pb2 as pb
from millpond.serve.proto import ms_service_pb2 as ms
from tests.support.language_ports import MODEL, LanguagePorts, ask_mindspore, ask_triton, language_ports, post
from tests.support.pushed_engine import PushedEngine
from tests.support.system_calls import sent_by_sockets
from tests.support.waiting import eventually

TEXT = 'A "mill"\\pond, \u2028 \u00e9\u4e16\U0001f680 <b>\t{}\n' * 3
OVER_HTTP = ["triton", "mindspore"]
ASKS: dict[str, Callable[[int], tuple[str, object]]] = {"triton": ask_triton, "mindspore": ask_mindspore}


@pytest.fixture
def engine(text: TextModel) -> PushedEngine:
    return PushedEngine(text)


@pytest.fixture
async def at(engine: PushedEngine) -> AsyncIterator[LanguagePorts]:
    async with language_ports(engine) as ports:
        yield ports


def address(at: LanguagePorts, name: str) -> str:
    return at.triton_http if name == "triton" else at.mindspore_rest


def said(name: str, data: bytes) -> str:
    """The text of all events of an answer."""
    body = re.sub(rb"\r\n[0-9a-f]+\r\n", b"", data.partition(b"\r\n\r\n")[2])
    events = [json.loads(line) for line in re.findall(rb"data: (\{.*\})\n\n", body)]
    return "".join(
        event["text_output"] if name == "triton" else event["instances"][0]["text_output"] for event in events
    )


def triton_request(request_id: str = "", max_tokens: int = 400) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=MODEL, id=request_id)
    sampling = json.dumps({"temperature": 0, "max_tokens": max_tokens}).encode()
    for name, value in (("text_input", b"hi"), ("sampling_parameters", sampling)):
        request.inputs.add(name=name, datatype="BYTES", shape=[1])
        request.raw_input_contents.append(len(value).to_bytes(4, "little") + value)
    request.inputs.add(name="stream", datatype="BOOL", shape=[1])
    request.raw_input_contents.append(b"\x01")
    return request


def triton_stream(
    channel: grpc.aio.Channel,
) -> grpc.aio.StreamStreamCall[Any, pb.ModelStreamInferResponse]:
    call = channel.stream_stream(
        "/inference.GRPCInferenceService/ModelStreamInfer",
        request_serializer=pb.ModelInferRequest.SerializeToString,
        response_deserializer=pb.ModelStreamInferResponse.FromString,
    )
    return call()


async def begun(engine: PushedEngine, count: int = 1) -> None:
    await eventually(lambda: len(engine.routes) == count)
    await asyncio.sleep(0.01)  # the stream waits for its first event now


@pytest.mark.parametrize("name", OVER_HTTP)
async def test_the_head_goes_with_the_first_event(
    at: LanguagePorts, engine: PushedEngine, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that is woken by a head alone may take the processor that the first event would be written on."""
    sent = sent_by_sockets(monkeypatch)
    with await post(address(at, name), *ASKS[name](100)):
        await begun(engine)
        engine.push(engine.text.tokenizer.encode("a", False))
        await eventually(lambda: any(b"data: {" in data for data in sent))
        assert [b"data: {" in data for data in sent if data.startswith(b"HTTP/1.1 200")] == [True]
    await eventually(lambda: bool(engine.cancelled))


@pytest.mark.parametrize("name", OVER_HTTP)
async def test_a_token_is_on_its_way_before_the_step_returns(
    at: LanguagePorts, engine: PushedEngine, name: str
) -> None:
    loop = asyncio.get_running_loop()
    with await post(address(at, name), *ASKS[name](100)) as client:
        await begun(engine)
        tokens = engine.text.tokenizer.encode("abc", False)
        engine.push(tokens[:1])
        first = b""
        while b"data: " not in first:
            first += await loop.sock_recv(client, 1 << 16)
        for token in tokens[1:]:
            engine.push([token])
            data = client.recv(1 << 16)  # does not block: no turn of the loop lies between
            assert data.count(b"data: ") == 1
        engine.push([], "length")


@pytest.mark.parametrize("name", OVER_HTTP)
async def test_a_client_that_stops_reading_loses_nothing_and_holds_nothing_up(
    at: LanguagePorts, engine: PushedEngine, name: str
) -> None:
    loop = asyncio.get_running_loop()
    (letter,) = engine.text.tokenizer.encode("x", False)
    with await post(address(at, name), *ASKS[name](400), receive_bytes=4096) as client:
        await begun(engine)
        route = engine.routes[0]
        piece = [letter] * 2000  # far more a step than an engine gives, so that the connection is full soon
        num_steps = 0
        while not route._buffers and num_steps < 20_000:
            engine.push(piece)
            num_steps += 1
            await asyncio.sleep(0)
        assert route._buffers, "the stream never was full"
        for _ in range(50):
            engine.push(piece)
            assert len(route._buffers) == 1
        engine.push([], "length")
        data = b""
        while not data.endswith(b"0\r\n\r\n"):
            data += await asyncio.wait_for(loop.sock_recv(client, 1 << 20), 20)
    assert len(said(name, data)) == (num_steps + 50) * 2000
    assert not engine.cancelled


@pytest.mark.parametrize("name", OVER_HTTP)
@pytest.mark.parametrize("is_full", [False, True])
async def test_a_client_that_hangs_up_frees_its_request(
    at: LanguagePorts, engine: PushedEngine, name: str, is_full: bool
) -> None:
    (letter,) = engine.text.tokenizer.encode("x", False)
    with await post(address(at, name), *ASKS[name](400), receive_bytes=4096):
        await begun(engine)
        engine.push([letter])
        while is_full and not engine.routes[0]._buffers:
            engine.push([letter] * 2000)
            await asyncio.sleep(0)
    await eventually(lambda: engine.cancelled == engine.routes)
    servable = at.servables.find(MODEL)
    await eventually(lambda: servable.num_open == 0)
    assert servable.statistics.failures["CANCELED"] == 1


async def test_every_way_says_the_same(at: LanguagePorts, engine: PushedEngine) -> None:
    loop = asyncio.get_running_loop()
    clients = {name: await post(address(at, name), *ASKS[name](400)) for name in OVER_HTTP}
    async with grpc.aio.insecure_channel(at.triton_grpc) as one, grpc.aio.insecure_channel(at.mindspore_grpc) as other:
        stream = triton_stream(one)
        await stream.write(triton_request("mine"))
        await stream.done_writing()
        replies = mindspore_stream(other)
        await begun(engine, 4)
        for token in engine.text.tokenizer.encode(TEXT, False):
            engine.push([token])
            await asyncio.sleep(0)
        engine.push([engine.text.eos_token_ids[0]], "stop")
        answers = [answer async for answer in stream]
        pieces = [reply.instances[0].items["text_output"].bytes_val[0] async for reply in replies]
    for name, client in clients.items():
        data = b""
        while not data.endswith(b"0\r\n\r\n"):
            data += await asyncio.wait_for(loop.sock_recv(client, 1 << 20), 20)
        client.close()
        assert said(name, data) == TEXT
    assert b"".join(pieces).decode() == TEXT
    responses = [answer.infer_response for answer in answers]
    assert b"".join(response.raw_output_contents[0][4:] for response in responses).decode() == TEXT
    assert {(response.id, response.model_name, response.model_version) for response in responses} == {
        ("mine", MODEL, "1")
    }
    finals = [response.parameters["triton_final_response"].bool_param for response in responses]
    assert finals == [False] * (len(finals) - 1) + [True]
    assert len(responses) == len(engine.text.tokenizer.encode(TEXT, False)) + 1


def mindspore_stream(channel: grpc.aio.Channel) -> grpc.aio.UnaryStreamCall[Any, ms.PredictReply]:
    request = ms.PredictRequest()
    request.servable_spec.name, request.servable_spec.method_name = MODEL, "generated_stream"
    item = request.instances.add().items["text_input"]
    item.dtype = ms.MS_STRING
    item.bytes_val.append(b"hi")
    call = channel.unary_stream(
        "/mindspore.serving.proto.MSService/PredictStream",
        request_serializer=ms.PredictRequest.SerializeToString,
        response_deserializer=ms.PredictReply.FromString,
    )
    return call(request)


@pytest.mark.parametrize("leaves", ["all", "one of two"])
async def test_a_grpc_client_that_leaves_frees_its_requests_alone(
    at: LanguagePorts, engine: PushedEngine, leaves: str
) -> None:
    async with grpc.aio.insecure_channel(at.triton_grpc) as channel:
        streams = [triton_stream(channel) for _ in range(2)]
        for stream in streams:
            await stream.write(triton_request())
            await begun(engine, 1 + streams.index(stream))
        engine.push([70])
        for stream in streams:
            await stream.read()
        gone = streams if leaves == "all" else streams[:1]
        for stream in gone:
            stream.cancel()
        await eventually(lambda: engine.cancelled == engine.routes[: len(gone)])
        engine.push([71], "length")
        if leaves != "all":
            answer = await streams[1].read()
            assert isinstance(answer, pb.ModelStreamInferResponse)
            assert answer.infer_response.parameters["triton_final_response"].bool_param


@pytest.mark.parametrize("name", OVER_HTTP)
@pytest.mark.parametrize("is_begun", [False, True])
async def test_an_engine_that_dies_is_told(at: LanguagePorts, engine: PushedEngine, name: str, is_begun: bool) -> None:
    loop = asyncio.get_running_loop()
    with await post(address(at, name), *ASKS[name](100)) as client:
        await begun(engine)
        if is_begun:
            engine.push([70])
            await asyncio.sleep(0.01)
        engine.push([], "error")
        data = b""
        while not data.endswith(b"0\r\n\r\n"):
            data += await asyncio.wait_for(loop.sock_recv(client, 1 << 20), 20)
    assert data.count(b"The engine process ended.") == 1
    assert data.count(b"text_output") == is_begun
    status = int(data.split(b" ", 2)[1])
    assert status == (200 if is_begun or name == "mindspore" else 400)


@pytest.mark.parametrize("name", ["triton", "mindspore", "triton http", "mindspore rest"])
async def test_a_client_that_leaves_what_is_full_is_no_failure_of_ours(
    at: LanguagePorts, engine: PushedEngine, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with contextlib.AsyncExitStack() as stack:
        leave: Callable[[], object]
        if name == "triton":
            stream = triton_stream(await stack.enter_async_context(grpc.aio.insecure_channel(at.triton_grpc)))
            await stream.write(triton_request())
            leave = stream.cancel
        elif name == "mindspore":
            leave = mindspore_stream(
                await stack.enter_async_context(grpc.aio.insecure_channel(at.mindspore_grpc))
            ).cancel
        else:
            kind = name.split()[0]
            leave = (await post(address(at, kind), *ASKS[kind](400), receive_bytes=4096)).close
        await begun(engine)
        (letter,) = engine.text.tokenizer.encode("x", False)
        while not engine.routes[0]._buffers:
            engine.push([letter] * 2000)
            await asyncio.sleep(0)
        leave()
        await eventually(lambda: engine.cancelled == engine.routes)
        await eventually(lambda: at.servables.find(MODEL).num_open == 0)
    gc.collect()  # a task whose error nobody took says so when it goes
    assert not [record.getMessage() for record in caplog.records if record.levelname in ("WARNING", "ERROR")]
    assert at.servables.find(MODEL).statistics.failures == {"REJECTED": 0, "CANCELED": 1, "BACKEND": 0, "OTHER": 0}

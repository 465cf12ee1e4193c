"""Both ports over a registry: public HTTP and gRPC clients see the original's answers."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import grpc
import httpx
import numpy as np
import pytest

from millpond.compat.mindspore_serving.client import Client
from millpond.serve.proto import ms_service_pb2 as pb
from tests.integration.mindspore.conftest import Room

IMPATIENT = httpx.Timeout(60, read=0.3)  # connects in peace, then gives up
PREDICT = "/mindspore.serving.proto.MSService/Predict"


async def post(url: str, document: Any, **options: Any) -> httpx.Response:
    async with httpx.AsyncClient(timeout=20) as client:
        content = document if isinstance(document, bytes) else json.dumps(document).encode()
        return await client.post(url, content=content, **options)


async def infer(room: Room, method: str, instances: Any, *, name: str = "add", version: int = 0) -> Any:
    def call() -> Any:
        with Client(room.grpc, name, method, version) as client:
            return client.infer(instances)

    return await asyncio.to_thread(call)


async def test_rest_answers_instances_in_order(room: Room) -> None:
    instances = [{"x1": [[index, 1]], "x2": [[1, 1]]} for index in range(9)]
    reply = await post(f"{room.rest}/model/add:add_common", {"instances": instances})
    assert reply.status_code == 200
    assert reply.headers["content-type"] == "application/json"
    assert reply.json() == {"instances": [{"y": [[index + 1, 2]]} for index in range(9)]}


async def test_an_instance_that_fails_stands_among_the_others(room: Room) -> None:
    instances = [{"x1": value, "x2": 1} for value in (1, 13, 2)]
    text = "Call Function 'add.check' Failed, unlucky"
    reply = await post(f"{room.rest}/model/add:add_common", {"instances": instances})
    assert reply.json() == {"instances": [{"y": 2}, {"error_msg": text}, {"y": 3}]}
    reply = await post(f"{room.rest}/model/add:add_common", {"instances": [instances[1]] * 3})
    assert reply.json() == {"error_msg": text}
    results = await infer(room, "add_common", [{"x1": value, "x2": 1} for value in (1, 13)])
    assert results[0]["y"] == 2
    assert results[1] == {"error": text}
    assert await infer(room, "add_common", {"x1": 13, "x2": 1}) == {"error": text}


@pytest.mark.parametrize(
    ("path", "document", "status", "text"),
    [
        ("/model/sub:add_common", {"instances": {"x1": 1}}, 404, "Request servable(sub) method(add_common) , servable"),
        (
            "/model/add/version/3:add_common",
            {"instances": {"x1": 1}},
            404,
            "Request servable(add) method(add_common)  version(3) , servable is not available",
        ),
        ("/model/add:sub", {"instances": {"x1": 1}}, 404, "servable(add) method(sub) , method is not available"),
        (
            "/model/add:add_common",
            {"instances": {"x1": 1}},
            400,
            "Cannot find input x2 in instance input , servable add, method add_common",
        ),
        ("/model/add:pass_on", {"instances": {"x": [["a"]]}}, 400, "can only be (1,) or empty, but given shape"),
        ("/x/:add_common", {"instances": {"x1": 1}}, 404, "the keyword:[model] must contain."),
        ("/model/add:add_common", b"", 400, "http message invalid"),
        ("/model/add:add_common", b"{", 400, "Illegal JSON format."),
        ("/model/add:add_common", b" " * (1 << 20) + b"{}", 413, "http message is bigger than 1048576"),
        ("/model/add:add_common", {"instances": []}, 400, "instances value is array type, but no value"),
    ],
)
async def test_refusals_have_status_200_or_a_proper_one(
    room: Room, path: str, document: Any, status: int, text: str
) -> None:
    for base, expected in ((room.rest, 200), (room.strict, status)):
        reply = await post(base + path, document)
        assert (reply.status_code, text in reply.json()["error_msg"]) == (expected, True)


async def test_other_verbs_than_post_are_refused(room: Room) -> None:
    async with httpx.AsyncClient(timeout=60) as client:
        for base, expected in ((room.rest, 200), (room.strict, 405)):
            reply = await client.get(f"{base}/model/add:add_common")
            assert reply.status_code == expected
            assert reply.json() == {"error_msg": "http message only support POST right now"}


async def test_strings_and_bytes_go_through(room: Room) -> None:
    for value in ("é", {"b64": "AAE="}):
        reply = await post(f"{room.rest}/model/add:pass_on", {"instances": {"x": value}})
        assert reply.json() == {"instances": [{"x": value}]}
    results = await infer(room, "pass_on", [{"x": "é"}, {"x": b"\x00"}, {"x": np.float16([1, 2])}])
    assert [results[0]["x"], results[1]["x"], results[2]["x"].tolist()] == ["é", b"\x00", [1.0, 2.0]]


async def test_a_version_can_be_named(room: Room) -> None:
    reply = await post(f"{room.rest}/model/add/version/1:pass_on", {"instances": {"x": 1}})
    assert reply.json() == {"instances": [{"x": 1}]}
    assert (await infer(room, "pass_on", {"x": 1}, version=2))[0]["x"] == 1


async def test_raw_stubs_get_ok_and_codes_in_the_reply(room: Room) -> None:
    request = pb.PredictRequest(servable_spec=pb.ServableSpec(name="add", method_name="none", version_number=1))
    async with grpc.aio.insecure_channel(room.grpc) as channel:
        call = channel.unary_unary(PREDICT, pb.PredictRequest.SerializeToString, pb.PredictReply.FromString)
        reply = await call(request)
        assert reply.servable_spec == request.servable_spec
        assert [error.error_code for error in reply.error_msg] == [2]
        request.servable_spec.method_name = "pass_on"
        reply = await call(request)
        assert reply.error_msg[0].error_msg == (
            b"Instances count of request cannot be 0, servable: add, method: pass_on"
        )


async def test_instances_of_one_call_spread_over_replicas_and_batches(room: Room) -> None:
    await infer(room, "pass_on", [{"x": index} for index in range(32)])
    assert {number for number, _ in room.methods.batches} == {0, 1}
    assert sum(size for _, size in room.methods.batches) == 32
    assert max(size for _, size in room.methods.batches) == 4


async def test_instances_of_a_worker_that_died_are_sent_again(room: Room) -> None:
    room.methods.deaths = 2
    results = await infer(room, "pass_on", [{"x": index} for index in range(6)])
    assert [int(result["x"][0]) for result in results] == list(range(6))


async def test_an_instance_that_kills_every_worker_ends(room: Room) -> None:
    room.methods.deaths = 1_000_000
    result = await infer(room, "pass_on", {"x": 1})
    assert result == {"error": "the worker died"}


async def test_calls_beyond_the_limit_are_refused(room: Room) -> None:
    room.methods.gate = asyncio.Event()
    room.dispatcher.max_enqueued_requests = 2
    url, document = f"{room.rest}/model/add:pass_on", {"instances": {"x": 1}}
    waiting = [asyncio.create_task(post(url, document)) for _ in range(2)]
    while room.dispatcher.num_open < 2:
        await asyncio.sleep(0.01)
    text = "Serving Error: enqueued requests count exceeds the limit 2"
    assert (await post(url, document)).json() == {"error_msg": text}
    assert (await post(f"{room.strict}/model/add:pass_on", document)).status_code == 503
    assert await infer(room, "pass_on", {"x": 1}) == {"error": text}
    room.methods.gate.set()
    assert [reply.json() for reply in await asyncio.gather(*waiting)] == [{"instances": [{"x": 1}]}] * 2


async def test_a_client_that_goes_away_frees_its_place(room: Room) -> None:
    room.methods.gate = asyncio.Event()
    async with httpx.AsyncClient(timeout=60) as client:
        with pytest.raises(httpx.ReadTimeout):
            await client.post(f"{room.rest}/model/add:pass_on", content=b'{"instances":{"x":1}}', timeout=IMPATIENT)
    async with asyncio.timeout(60):
        while room.dispatcher.num_open:
            await asyncio.sleep(0.01)
    room.methods.gate.set()


async def test_generated_stream_gives_events(room: Room) -> None:
    document = {"instances": {"inputs": "one two three", "temperature": 0.7, "max_tokens": 3}}
    reply = await post(f"{room.rest}/model/LLaMA:generated_stream", document)
    assert reply.headers["content-type"].startswith("text/event-stream")
    events = [line.removeprefix("data: ") for line in reply.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    assert [json.loads(event)["instances"][0]["text_output"] for event in events[:-1]] == ["one ", "two ", "three "]
    request = room.words.seen[0]
    assert json.loads(request.inputs["sampling_parameters"].array.item()) == {"temperature": 0.7, "max_tokens": 3}
    assert request.inputs["stream"].array.tolist() == [[True]]


async def test_the_article_s_request_is_understood(room: Room) -> None:
    # The image of its example, base64 without a type, is bytes: here it is the prompt.
    document = {"instances": {"text_input": {"b64": "b25lIHR3bw=="}}}
    reply = await post(f"{room.rest}/model/LLaMA:generated_stream", document)
    assert reply.text.count("text_output") == 2


async def test_generate_gives_all_at_once(room: Room) -> None:
    reply = await post(f"{room.rest}/model/LLaMA:generate", {"instances": [{"prompt": "a b"}, {"prompt": "c"}]})
    assert reply.json() == {"instances": [{"text_output": "a b "}, {"text_output": "c "}]}


async def test_a_stream_that_fails_says_so(room: Room) -> None:
    for base, expected in ((room.rest, 200), (room.strict, 400)):
        reply = await post(f"{base}/model/LLaMA:generated_stream", {"instances": [{"inputs": "a"}] * 2})
        assert (reply.status_code, reply.json()["error_msg"]) == (
            expected,
            "A stream is for one instance; send a request for each",
        )
    reply = await post(f"{room.rest}/model/LLaMA:generated_stream", {"instances": {"inputs": "fail"}})
    assert "the model failed" in reply.text


async def test_the_client_streams_and_cancels(room: Room) -> None:
    def words() -> list[Any]:
        with Client(room.grpc, "LLaMA", "generated_stream") as client:
            return list(client.infer_stream({"inputs": "one two"}))

    assert await asyncio.to_thread(words) == [{"text_output": "one "}, {"text_output": "two "}]
    room.words.pace = asyncio.Event()
    async with httpx.AsyncClient(timeout=60) as client:
        body = b'{"instances":{"inputs":"a b"}}'
        with pytest.raises(httpx.ReadTimeout):
            await client.post(f"{room.rest}/model/LLaMA:generated_stream", content=body, timeout=IMPATIENT)
    async with asyncio.timeout(60):
        while not room.words.num_cancelled or room.dispatcher.num_open:
            await asyncio.sleep(0.01)
    room.words.pace.set()


async def test_requests_at_the_same_time_are_not_mixed_up(room: Room) -> None:
    async with httpx.AsyncClient(timeout=30) as client:

        async def one(number: int) -> bool:
            instances = [{"x1": number * 100 + index, "x2": 0} for index in range(1 + number % 5)]
            reply = await client.post(f"{room.rest}/model/add:add_common", json={"instances": instances})
            return [item["y"] for item in reply.json()["instances"]] == [item["x1"] for item in instances]

        assert all(await asyncio.gather(*[one(number) for number in range(1, 60)]))


async def test_draining_refuses_new_calls(room: Room) -> None:
    room.dispatcher.draining = True
    reply = await post(f"{room.strict}/model/add:pass_on", {"instances": {"x": 1}})
    assert (reply.status_code, reply.json()) == (503, {"error_msg": "Serving Error: the server is stopping"})


async def test_a_reply_leaves_without_waiting_for_the_clients_acknowledgement(room: Room) -> None:
    host, _, port = room.rest.removeprefix("http://").rpartition(":")
    with socket.create_connection((host, int(port))) as connection:
        accepted: list[socket.socket] = []
        async with asyncio.timeout(60):
            while not accepted:
                await asyncio.sleep(0.005)
                accepted = [
                    transport.get_extra_info("socket")
                    for transport in _transports()
                    if transport.get_extra_info("peername") == connection.getsockname()
                ]
        assert [sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for sock in accepted] == [1]


def _transports() -> list[Any]:
    loop = asyncio.get_running_loop()
    return list(loop._transports.values())  # type: ignore[attr-defined]  # of the kind used here

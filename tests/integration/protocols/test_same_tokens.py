"""One language model, asked for the same text through every protocol of one server: the same tokens each time."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
import tritonclient.grpc
from openai import OpenAI

from millpond.compat.mindspore_serving.client import Client
from tests.support.fuzzing.rooms import NAME, FuzzRoom, fuzz_room
from tests.support.shard_client import ShardClient, make_request

PROMPTS = ("hello there", "The mill by the pond", "{")
COUNT = 12


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FuzzRoom]:
    with fuzz_room(tmp_path_factory.mktemp("room"), "compatible") as room:
        yield room


def post(address: str, path: str, body: Any) -> Any:
    response = httpx.post(f"http://{address}{path}", json=body, timeout=120)
    assert response.status_code == 200, response.text
    return response.json()


def over_openai(room: FuzzRoom, prompt: str) -> str:
    with OpenAI(base_url=f"http://{room.at.openai}/v1", api_key="none") as client:
        done = client.completions.create(model=NAME, prompt=prompt, max_tokens=COUNT, temperature=0)
    return done.choices[0].text


def over_tgi(room: FuzzRoom, prompt: str) -> str:
    body = {"inputs": prompt, "parameters": {"max_new_tokens": COUNT}}
    return str(post(room.at.tgi, "/generate", body)["generated_text"])


def over_triton_generate(room: FuzzRoom, prompt: str) -> str:
    parameters = json.dumps({"max_tokens": str(COUNT), "temperature": "0"})
    body = {"text_input": prompt, "sampling_parameters": parameters, "exclude_input_in_output": True}
    return str(post(room.at.triton_http, f"/v2/models/{NAME}/generate", body)["text_output"])


def over_triton_grpc(room: FuzzRoom, prompt: str) -> str:
    parameters = json.dumps({"max_tokens": str(COUNT), "temperature": "0"})
    inputs = []
    for name, kind, value in (
        ("text_input", "BYTES", prompt.encode()),
        ("sampling_parameters", "BYTES", parameters.encode()),
        ("exclude_input_in_output", "BOOL", True),
        ("stream", "BOOL", True),
    ):
        tensor = tritonclient.grpc.InferInput(name, [1], kind)
        tensor.set_data_from_numpy(np.array([value], dtype=object if kind == "BYTES" else bool))
        inputs.append(tensor)
    pieces: list[str] = []
    errors: list[Exception] = []
    with tritonclient.grpc.InferenceServerClient(room.at.triton_grpc) as client:

        def take(result: Any, error: Exception | None) -> None:
            if error is not None:
                errors.append(error)
            elif (array := result.as_numpy("text_output")) is not None:
                pieces.extend(item.decode() for item in array.reshape(-1))

        client.start_stream(take)
        client.async_stream_infer(NAME, inputs)
        client.stop_stream()
    assert errors == []
    return "".join(pieces)


def over_mindspore_rest(room: FuzzRoom, prompt: str) -> str:
    body = {"instances": [{"inputs": prompt, "temperature": 0.0, "max_tokens": COUNT}]}
    return str(post(room.at.mindspore_rest, f"/model/{NAME}:generate", body)["instances"][0]["text_output"])


def over_mindspore_grpc(room: FuzzRoom, prompt: str) -> str:
    with Client(room.at.mindspore_grpc, NAME, "generated_stream") as client:
        fields = {"text_input": prompt, "temperature": 0.0, "max_tokens": COUNT}
        return "".join(item["text_output"] for item in client.infer_stream(fields))


def over_shard(room: FuzzRoom, prompt: str) -> str:
    client = ShardClient(room.at.shard)
    try:
        generation = client.prefill(1, make_request(1, prompt, COUNT)).generations[0]
        while not generation.HasField("generated_text"):
            generation = client.decode(1).generations[0]
        return str(generation.generated_text.text)
    finally:
        client.clear()
        client.close()


WAYS = (over_tgi, over_shard, over_triton_generate, over_triton_grpc, over_mindspore_rest, over_mindspore_grpc)


@pytest.mark.parametrize("prompt", PROMPTS)
def test_every_protocol_gives_the_tokens_of_the_openai_port(room: FuzzRoom, prompt: str) -> None:
    expected = over_openai(room, prompt)
    assert expected
    assert {way.__name__: way(room, prompt) for way in WAYS} == {way.__name__: expected for way in WAYS}




def test_the_token_ids_are_the_same_too(room: FuzzRoom) -> None:
    body = {"inputs": PROMPTS[0], "parameters": {"max_new_tokens": COUNT, "details": True}}
    told = [token["id"] for token in post(room.at.tgi, "/generate", body)["details"]["tokens"]]
    with OpenAI(base_url=f"http://{room.at.openai}/v1", api_key="none") as client:
        done = client.completions.create(
            model=NAME, prompt=PROMPTS[0], max_tokens=COUNT, temperature=0
        )
    shard = ShardClient(room.at.shard)
    try:
        generation = shard.prefill(2, make_request(1, PROMPTS[0], COUNT)).generations[0]
        ids = list(generation.tokens.ids)
        while not generation.HasField("generated_text"):
            generation = shard.decode(2).generations[0]
            ids += generation.tokens.ids
    finally:
        shard.clear()
        shard.close()
    assert ids == told
    assert done.usage is not None
    assert done.usage.completion_tokens == len(told)

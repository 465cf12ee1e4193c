"""The same tokens whichever way they are asked for: transformers, our OpenAI port, /generate, its stream."""

from __future__ import annotations

import json
import re
from typing import Any

import httpx
import pytest
import torch

from tests.support.server_process import ServerProcess

PROMPTS = ["The mill by the pond", "Hello! How are you?", "x", "Größe, 日本語"]
SAMPLED: list[dict[str, Any]] = [
    {"temperature": 0.7, "seed": 5},
    {"temperature": 1.3, "top_k": 20, "top_p": 0.9, "seed": 11},
    {"temperature": 1.0, "repetition_penalty": 1.2, "frequency_penalty": 0.5, "top_p": 0.99, "seed": 2**63 - 1},
]


def ids_of(http: httpx.Client, inputs: str, **parameters: Any) -> list[int]:
    body = {"inputs": inputs, "parameters": {"details": True, "max_new_tokens": 20, **parameters}}
    response = http.post("/generate", json=body)
    assert response.status_code == 200, response.text
    return [token["id"] for token in response.json()["details"]["tokens"]]


def stream_of(http: httpx.Client, inputs: str, **parameters: Any) -> list[dict[str, Any]]:
    body = {"inputs": inputs, "parameters": {"details": True, "max_new_tokens": 20, **parameters}}
    text = http.post("/generate_stream", json=body).text
    return [json.loads(line.removeprefix("data:")) for line in text.splitlines() if line.startswith("data:")]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_greedy_tokens_and_their_logprobs_are_those_of_transformers(
    http: httpx.Client, model: Any, tokenizer: Any, prompt: str
) -> None:
    ids = torch.tensor([tokenizer(prompt)["input_ids"]])
    with torch.no_grad():
        whole = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=20, do_sample=False)
        logprobs = torch.log_softmax(model(whole).logits[0].double(), -1)
    expected = whole[0, ids.shape[1] :].tolist()

    body = {
        "inputs": prompt, "parameters": {"details": True, "decoder_input_details": True, "max_new_tokens": 20}
    }  # fmt: skip
    details = http.post("/generate", json=body).json()["details"]

    assert [token["id"] for token in details["tokens"]] == expected
    shown = [token["logprob"] for token in [*details["prefill"], *details["tokens"]]][1:]
    all_ids = whole[0].tolist()
    wanted = [logprobs[place, token].item() for place, token in enumerate(all_ids[1:])]
    assert shown == pytest.approx(wanted, abs=2e-4)
    assert [event["token"]["id"] for event in stream_of(http, prompt)] == expected


@pytest.mark.parametrize("parameters", SAMPLED)
def test_sampled_tokens_are_those_of_the_openai_port(
    server: ServerProcess, http: httpx.Client, parameters: dict[str, Any]
) -> None:
    prompt = PROMPTS[0]
    body = {"prompt": prompt, "max_tokens": 20, "logprobs": 0, "top_p": 1.0, **parameters}
    reply = httpx.post(f"{server.url}/v1/completions", json=body, timeout=60).json()["choices"][0]
    details = {"inputs": prompt, "parameters": {"details": True, "max_new_tokens": 20, **parameters}}
    found = http.post("/generate", json=details).json()

    assert found["generated_text"] == reply["text"]
    assert [t["logprob"] for t in found["details"]["tokens"]] == reply["logprobs"]["token_logprobs"]
    assert [e["token"]["id"] for e in stream_of(http, prompt, **parameters)] == ids_of(http, prompt, **parameters)


def test_each_of_the_best_of_sequences_can_be_had_again_by_its_seed(http: httpx.Client) -> None:
    body = {
        "inputs": PROMPTS[1],
        "parameters": {"best_of": 2, "do_sample": True, "details": True, "max_new_tokens": 10},
    }
    details = http.post("/generate", json=body).json()["details"]
    for sequence in (details, *details["best_of_sequences"]):
        again = ids_of(http, PROMPTS[1], do_sample=True, seed=sequence["seed"], max_new_tokens=10)
        assert again == [token["id"] for token in sequence["tokens"]]
    [other] = details["best_of_sequences"]
    means = [sum(t["logprob"] for t in s["tokens"]) / len(s["tokens"]) for s in (details, other)]
    assert means[0] >= means[1]


def test_typical_sampling_is_reproducible_and_differs_from_free_sampling(http: httpx.Client) -> None:
    free = [ids_of(http, "x", do_sample=True, seed=seed) for seed in range(3)]
    typical = [ids_of(http, "x", typical_p=0.2, seed=seed) for seed in range(3)]
    assert typical == [ids_of(http, "x", typical_p=0.2, seed=seed) for seed in range(3)]
    assert typical != free


def test_the_text_ends_with_the_stop_sequence(http: httpx.Client) -> None:
    free = http.post("/generate", json={"inputs": "x", "parameters": {"max_new_tokens": 20}}).json()["generated_text"]
    stop = free[6:9]
    body = {"inputs": "x", "parameters": {"max_new_tokens": 20, "stop": [stop], "details": True}}
    found = http.post("/generate", json=body).json()
    assert found["generated_text"] == free[: free.index(stop) + len(stop)]
    assert found["details"]["finish_reason"] == "stop_sequence"
    events = stream_of(http, "x", stop=[stop])
    assert events[-1]["generated_text"] == found["generated_text"]
    assert events[-1]["details"]["finish_reason"] == "stop_sequence"


def test_grammars_hold_the_text(http: httpx.Client) -> None:
    schema = {"type": "object", "properties": {"mill": {"enum": ["wind", "water"]}}, "required": ["mill"]}
    for grammar in (
        {"type": "json", "value": schema},
        {"type": "json", "value": json.dumps(schema)},
        {"type": "json_schema", "value": {"name": "mill", "schema": schema}},
    ):
        parameters = {"grammar": grammar, "max_new_tokens": 60, "do_sample": True, "seed": 1}
        text = http.post("/generate", json={"inputs": "x", "parameters": parameters}).json()["generated_text"]
        assert json.loads(text)["mill"] in ("wind", "water")
    parameters = {"grammar": {"type": "regex", "value": "[0-9]{3}-[a-f]{2}"}, "max_new_tokens": 30}
    text = http.post("/generate", json={"inputs": "x", "parameters": parameters}).json()["generated_text"]
    assert re.fullmatch("[0-9]{3}-[a-f]{2}", text)


def test_tokens_cover_the_characters_of_the_text(http: httpx.Client, tokenizer: Any) -> None:
    text = "Größe, 日本語 and more"
    found = http.post("/tokenize", json={"inputs": text}).json()
    expected = tokenizer(text, return_offsets_mapping=True)
    assert [token["id"] for token in found] == expected["input_ids"]
    assert [(token["start"], token["stop"]) for token in found] == expected["offset_mapping"]
    assert all(token["text"] == text[token["start"] : token["stop"]] for token in found)

"""/generate, /generate_stream and /: bodies, byte forms and headers, with an engine that says what the test wants."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx2
import pytest

from millpond.api.request import ErrorInfo
from millpond.base.errors import EngineDeadError, QueueFullError
from tests.support.scripted_engine import ScriptedEngine

ANSWER = "Hello there, miller."


def events(text: str) -> list[dict[str, Any]]:
    """The events of a stream; asserts that it has TGI's byte form."""
    frames = text.split("\n\n")
    assert frames[-1] == ""
    assert all(frame.startswith("data:{") for frame in frames[:-1])
    return [json.loads(frame.removeprefix("data:")) for frame in frames[:-1]]


async def generate(client: httpx2.AsyncClient, inputs: str = "Hello", **parameters: Any) -> httpx2.Response:
    return await client.post("/generate", json={"inputs": inputs, "parameters": parameters})


async def test_a_text_goes_on_and_the_headers_say_what_it_took(tgi: httpx2.AsyncClient) -> None:
    response = await generate(tgi)

    assert response.status_code == 200
    assert response.json() == {"generated_text": ANSWER}
    headers = response.headers
    assert headers["x-prompt-tokens"] == "1"
    assert headers["x-generated-tokens"] == "9"
    assert headers["x-compute-characters"] == "5"
    assert float(headers["x-compute-time"]) >= 0
    for name in ("x-total-time", "x-validation-time", "x-queue-time", "x-inference-time", "x-time-per-token"):
        assert headers[name].isdecimal()
    assert headers["x-queue-time"] == "250"  # what the engine said


async def test_details_hold_the_tokens_and_the_reason(tgi: httpx2.AsyncClient) -> None:
    details = (await generate(tgi, details=True, top_n_tokens=2, seed=5, do_sample=True)).json()["details"]

    assert "".join(token["text"] for token in details["tokens"]) == ANSWER + "<|im_end|>"
    assert [token["special"] for token in details["tokens"]] == [False] * 8 + [True]
    assert details["finish_reason"] == "eos_token"
    assert details["generated_tokens"] == 9
    assert details["seed"] == 5
    assert details["prefill"] == []
    assert [len(top) for top in details["top_tokens"]] == [2] * 9
    assert "best_of_sequences" not in details


async def test_the_prompts_tokens_come_when_they_are_asked_for(tgi: httpx2.AsyncClient) -> None:
    details = (await generate(tgi, "Hello mill", decoder_input_details=True, max_new_tokens=1)).json()["details"]

    assert "".join(token["text"] for token in details["prefill"]) == "Hello mill"
    assert details["prefill"][0]["logprob"] is None
    assert {token["logprob"] for token in details["prefill"][1:]} == {-0.5}
    assert details["finish_reason"] == "length"
    assert details["seed"] is None  # greedy


async def test_without_any_parameters_tgi_samples(tgi: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    await tgi.post("/generate", json={"inputs": "Hello"})
    await tgi.post("/generate", json={"inputs": "Hello", "parameters": {}})

    assert [request.params.temperature for request in engine.requests] == [1.0, 0.0]


async def test_the_answer_may_be_as_long_as_fits(tgi: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    await generate(tgi, "Hello mill")
    assert engine.requests[0].params.max_tokens == 512 - len(engine.requests[0].prompt_token_ids)


async def test_only_the_last_tokens_are_kept_of_a_truncated_prompt(
    tgi: httpx2.AsyncClient, engine: ScriptedEngine
) -> None:
    await generate(tgi, "Hello there, miller.", truncate=2)
    whole = engine.text.tokenizer.encode("Hello there, miller.")
    assert engine.requests[0].prompt_token_ids == whole[-2:]


async def test_the_prompt_comes_first_when_the_full_text_is_wanted(tgi: httpx2.AsyncClient) -> None:
    assert (await generate(tgi, "Say: ", return_full_text=True)).json()["generated_text"] == "Say: " + ANSWER
    text = (
        await tgi.post("/generate_stream", json={"inputs": "Say: ", "parameters": {"return_full_text": True}})
    ).text
    assert events(text)[-1]["generated_text"] == "Say: " + ANSWER


async def test_the_best_of_several_has_the_highest_logprob_a_token(
    tgi: httpx2.AsyncClient, engine: ScriptedEngine
) -> None:
    details = (await generate(tgi, best_of=2, do_sample=True, details=True)).json()["details"]

    seeds = [request.params.seed for request in engine.requests]
    assert len(set(seeds)) == 2
    assert all(request.params.n == 1 for request in engine.requests)
    [other] = details["best_of_sequences"]
    assert {details["seed"], other["seed"]} == {seed % 2**64 for seed in seeds if seed is not None}
    assert set(other) == {"generated_text", "finish_reason", "generated_tokens", "seed", "prefill", "tokens"}


async def test_a_seed_of_64_bits_is_taken(tgi: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    details = (await generate(tgi, seed=2**64 - 1, do_sample=True, details=True)).json()["details"]
    assert details["seed"] == 2**64 - 1
    assert engine.requests[0].params.seed == -1  # the same 64 bits


async def test_a_stream_has_an_event_a_token_and_the_text_at_its_end(tgi: httpx2.AsyncClient) -> None:
    response = await tgi.post("/generate_stream", json={"inputs": "Hello", "parameters": {"details": True, "seed": 1}})

    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["x-compute-characters"] == "5"
    found = events(response.text)
    assert [event["index"] for event in found] == list(range(1, 10))
    assert "".join(event["token"]["text"] for event in found[:-1]) == ANSWER
    assert all(event["generated_text"] is None and event["details"] is None for event in found[:-1])
    assert found[-1]["generated_text"] == ANSWER
    assert found[-1]["details"] == {
        "finish_reason": "eos_token", "generated_tokens": 9, "seed": None, "input_length": 1
    }  # fmt: skip


async def test_the_root_answers_with_a_list_or_a_stream(tgi: httpx2.AsyncClient) -> None:
    assert (await tgi.post("/", json={"inputs": "Hello"})).json() == [{"generated_text": ANSWER}]
    assert events((await tgi.post("/", json={"inputs": "Hello", "stream": True})).text)[-1]["generated_text"] == ANSWER


async def test_an_error_after_the_start_is_the_last_event(tgi: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    engine.stop_at = 2
    engine.failure = ErrorInfo("internal_error", "The step failed.")

    response = await tgi.post("/generate_stream", json={"inputs": "Hello"})

    assert response.status_code == 200
    assert events(response.text)[-1] == {
        "error": "Request failed during generation: The step failed.", "error_type": "generation"
    }  # fmt: skip
    assert (await generate(tgi)).status_code == 424


@pytest.mark.parametrize("path", ["/generate_stream", "/"])
async def test_a_refused_stream_is_an_event_or_strictly_a_status(
    tgi: httpx2.AsyncClient, strict: httpx2.AsyncClient, path: str
) -> None:
    body = {"inputs": "", "stream": True}
    refusal = {"error": "Input validation error: `inputs` cannot be empty", "error_type": "validation"}

    compatible = await tgi.post(path, json=body)
    proper = await strict.post(path, json=body)

    assert (compatible.status_code, events(compatible.text)) == (200, [refusal])
    assert (proper.status_code, proper.json()) == (422, refusal)


async def test_a_full_engine_is_an_overload_and_a_loading_one_is_unhealthy(
    tgi: httpx2.AsyncClient, engine: ScriptedEngine
) -> None:
    engine.refusal = QueueFullError("Full.", retry_after_s=3)
    response = await generate(tgi)
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")
    assert response.json() == {"error": "Model is overloaded", "error_type": "overloaded"}

    engine.refusal = EngineDeadError("It is gone.")
    response = await generate(tgi)
    assert (response.status_code, response.json()["error_type"]) == (503, "healthcheck")


async def test_there_are_so_many_places_and_no_queue(connect: Any, engine: ScriptedEngine) -> None:
    engine.stop_at = 1
    async with connect(max_concurrent_requests=2) as client:
        running = [asyncio.create_task(generate(client)) for _ in range(2)]
        while len(engine.requests) < 2:
            await asyncio.sleep(0)
        refused = await generate(client)
        engine.go_on.set()
        assert refused.status_code == 429
        assert [response.status_code for response in await asyncio.gather(*running)] == [200, 200]
        assert (await generate(client)).status_code == 200  # the places are free again


async def test_a_stream_that_is_left_frees_its_place_and_its_sequence(connect: Any, engine: ScriptedEngine) -> None:
    engine.stop_at = 1
    async with connect(max_concurrent_requests=1) as client:
        left = asyncio.create_task(client.post("/generate_stream", json={"inputs": "Hello"}))
        while not engine.requests:
            await asyncio.sleep(0)
        left.cancel()
        await asyncio.gather(left, return_exceptions=True)
        engine.go_on.set()
        assert (await generate(client)).status_code == 200
    assert engine.closed == [engine.requests[0].request_id]

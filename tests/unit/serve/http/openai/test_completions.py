"""/v1/completions through the OpenAI client, on a scripted engine."""

from __future__ import annotations

from typing import Any

import httpx2
import openai as openai_errors
import pytest
from openai import AsyncOpenAI

from millpond.serve.http.errors import ApiError
from millpond.serve.http.openai.completions import MAX_PROMPTS, prompt_list
from tests.support.scripted_engine import MODEL, ScriptedEngine

ANSWER = "Hello there, miller."


async def test_a_text_is_continued(openai: AsyncOpenAI, engine: ScriptedEngine) -> None:
    reply = await openai.completions.create(model=MODEL, prompt="Say hello", max_tokens=50)
    assert reply.choices[0].text == ANSWER
    assert reply.choices[0].finish_reason == "stop"
    assert reply.object == "text_completion"
    assert reply.id.startswith("cmpl-")
    assert engine.requests[0].prompt_token_ids == engine.text.tokenizer.encode("Say hello")


async def test_usage_counts_every_token(openai: AsyncOpenAI, engine: ScriptedEngine) -> None:
    reply = await openai.completions.create(model=MODEL, prompt="Say hello", max_tokens=50)
    num_prompt = len(engine.text.tokenizer.encode("Say hello"))
    num_output = len(engine.text.tokenizer.encode(ANSWER)) + 1  # the end of sequence counts
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (num_prompt, num_output)
    assert reply.usage.total_tokens == num_prompt + num_output
    assert reply.usage.prompt_tokens_details is not None
    assert reply.usage.prompt_tokens_details.cached_tokens == 2


async def test_sixteen_tokens_are_the_default(openai: AsyncOpenAI, engine: ScriptedEngine) -> None:
    await openai.completions.create(model=MODEL, prompt="a")
    assert engine.requests[0].params.max_tokens == 16


async def test_choices_of_many_prompts_are_numbered_by_prompt_and_choice(
    openai: AsyncOpenAI, engine: ScriptedEngine
) -> None:
    engine.answers = ["zero", "one"]
    reply = await openai.completions.create(model=MODEL, prompt=["a", "b", "c"], n=2)
    assert [(choice.index, choice.text) for choice in reply.choices] == list(enumerate(["zero", "one"] * 3))
    assert [request.prompt_token_ids for request in engine.requests] == [
        engine.text.tokenizer.encode(prompt) for prompt in "abc"
    ]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [("a", ["a"]), (["a", "b"], ["a", "b"]), ([1, 2], [[1, 2]]), ([[1], [2, 3]], [[1], [2, 3]])],
)
def test_a_prompt_has_four_forms(prompt: Any, expected: Any) -> None:
    assert prompt_list(prompt) == expected


@pytest.mark.parametrize("prompt", [[], [[]], ["a", 1], [1, [2]], ["a", [1]], [[1], []], ["a"] * (MAX_PROMPTS + 1)])
def test_no_other_form_is_taken(prompt: Any) -> None:
    with pytest.raises(ApiError) as caught:
        prompt_list(prompt)
    assert caught.value.body.param == "prompt"


async def test_token_ids_reach_the_engine_as_they_are(openai: AsyncOpenAI, engine: ScriptedEngine) -> None:
    await openai.completions.create(model=MODEL, prompt=[[5, 6], [7]])
    assert [request.prompt_token_ids for request in engine.requests] == [[5, 6], [7]]


async def test_a_token_outside_the_vocabulary_is_refused(openai: AsyncOpenAI, engine: ScriptedEngine) -> None:
    with pytest.raises(openai_errors.BadRequestError, match="not in the vocabulary"):
        await openai.completions.create(model=MODEL, prompt=[5, 100_000])


async def test_a_stream_says_the_same_in_pieces(openai: AsyncOpenAI) -> None:
    stream = await openai.completions.create(model=MODEL, prompt="a", max_tokens=50, stream=True)
    chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].text for chunk in chunks) == ANSWER
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices[0].finish_reason] == ["stop"]
    assert len({chunk.id for chunk in chunks}) == 1
    assert len(chunks) > 3
    assert all(chunk.usage is None for chunk in chunks)


async def test_a_stream_of_many_prompts_is_sorted_out_by_index(openai: AsyncOpenAI, engine: ScriptedEngine) -> None:
    engine.answers = ["zero is here", "one"]
    stream = await openai.completions.create(model=MODEL, prompt=["a", "b"], n=2, max_tokens=50, stream=True)
    texts = [""] * 4
    async for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == ["zero is here", "one"] * 2


async def test_the_last_chunk_has_the_usage_when_it_is_asked_for(http: httpx2.AsyncClient) -> None:
    body = {"prompt": "a", "stream": True, "stream_options": {"include_usage": True}}
    chunks = await stream_of(http, body)
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] > 3
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


async def test_every_chunk_has_the_usage_when_that_is_asked_for(http: httpx2.AsyncClient) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = await stream_of(http, {"prompt": "a", "max_tokens": 3, "stream": True, "stream_options": options})
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3, 3]


async def stream_of(http: httpx2.AsyncClient, body: dict[str, Any]) -> list[Any]:
    import json

    response = await http.post("/v1/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    lines = response.text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


async def test_echo_puts_the_prompt_first(openai: AsyncOpenAI) -> None:
    reply = await openai.completions.create(model=MODEL, prompt="Say: ", echo=True, max_tokens=50)
    assert reply.choices[0].text == "Say: " + ANSWER


async def test_echo_of_tokens_shows_their_text(openai: AsyncOpenAI, engine: ScriptedEngine) -> None:
    prompt = engine.text.tokenizer.encode("Say: ")
    reply = await openai.completions.create(model=MODEL, prompt=prompt, echo=True, max_tokens=50)
    assert reply.choices[0].text == "Say: " + ANSWER


async def test_echo_in_a_stream_comes_with_the_first_chunk_of_each_choice(openai: AsyncOpenAI) -> None:
    stream = await openai.completions.create(model=MODEL, prompt="Say: ", echo=True, n=2, max_tokens=50, stream=True)
    texts = ["", ""]
    async for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == ["Say: " + ANSWER] * 2


async def test_no_new_tokens_and_echo_score_the_prompt(openai: AsyncOpenAI, engine: ScriptedEngine) -> None:
    reply = await openai.completions.create(model=MODEL, prompt="The mill", echo=True, logprobs=1, max_tokens=0)
    tokens = [engine.text.tokenizer.decode([id]) for id in engine.text.tokenizer.encode("The mill")]
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert reply.choices[0].text == "The mill"
    assert reply.choices[0].finish_reason == "length"
    assert logprobs.tokens == tokens
    assert logprobs.token_logprobs == [None] + [-0.5] * (len(tokens) - 1)
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 0


async def test_logprobs_are_parallel_lists(openai: AsyncOpenAI) -> None:
    reply = await openai.completions.create(model=MODEL, prompt="a", logprobs=2, max_tokens=3)
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.token_logprobs == [-0.5] * 3
    assert logprobs.top_logprobs is not None
    assert [len(top) for top in logprobs.top_logprobs] == [2] * 3
    assert logprobs.text_offset == [1, 1 + len(logprobs.tokens[0]), 1 + len(logprobs.tokens[0] + logprobs.tokens[1])]


async def test_a_stream_of_logprobs_joins_to_the_whole(openai: AsyncOpenAI) -> None:
    whole = await openai.completions.create(model=MODEL, prompt="a", logprobs=2, max_tokens=6)
    tokens: list[str] = []
    offsets: list[int] = []
    async for chunk in await openai.completions.create(model=MODEL, prompt="a", logprobs=2, max_tokens=6, stream=True):
        assert chunk.choices[0].logprobs is not None
        tokens += chunk.choices[0].logprobs.tokens or []
        offsets += chunk.choices[0].logprobs.text_offset or []
    assert whole.choices[0].logprobs is not None
    assert (tokens, offsets) == (whole.choices[0].logprobs.tokens, whole.choices[0].logprobs.text_offset)


async def test_prompt_logprobs_have_vllms_shape(openai: AsyncOpenAI, engine: ScriptedEngine) -> None:
    reply = await openai.completions.create(model=MODEL, prompt="The mill", extra_body={"prompt_logprobs": 0})
    shown = reply.choices[0].model_dump()["prompt_logprobs"]
    ids = engine.text.tokenizer.encode("The mill")
    assert shown[0] is None
    assert [list(entry) for entry in shown[1:]] == [[str(id)] for id in ids[1:]]
    assert shown[1][str(ids[1])] == {
        "logprob": -0.5,
        "rank": 1,
        "decoded_token": engine.text.tokenizer.decode(ids[1:2]),
    }


async def test_best_of_ranks_more_choices_than_it_gives(openai: AsyncOpenAI, engine: ScriptedEngine) -> None:
    engine.answers = ["zero", "one", "two"]
    reply = await openai.completions.create(model=MODEL, prompt="a", n=2, best_of=3)
    assert engine.requests[0].params.n == 3
    assert [choice.index for choice in reply.choices] == [0, 1]


@pytest.mark.parametrize("body", [{"n": 3, "best_of": 2}, {"best_of": 2, "stream": True}])
async def test_best_of_without_sense_is_refused(http: httpx2.AsyncClient, body: dict[str, Any]) -> None:
    response = await http.post("/v1/completions", json={"prompt": "a", **body})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "best_of"


async def test_every_sampling_field_reaches_the_engine(http: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 7,
        "min_p": 0.1,
        "seed": 11,
        "max_tokens": 9,
        "min_tokens": 2,
        "presence_penalty": 0.3,
        "frequency_penalty": -0.4,
        "repetition_penalty": 1.2,
        "ignore_eos": True,
        "include_stop_str_in_output": True,
        "skip_special_tokens": False,
    }
    extra = {"stop": ["x", "yy"], "stop_token_ids": [3, 4], "logit_bias": {"5": -100, "6": 1.5}, "logprobs": 4}
    scheduling = {"priority": -3, "cache_salt": "tenant", "request_id": "mine-1"}
    response = await http.post("/v1/completions", json={"prompt": "a", **fields, **extra, **scheduling})
    assert response.status_code == 200, response.text
    request = engine.requests[0]
    assert {name: getattr(request.params, name) for name in fields} == fields
    assert (request.params.stop, request.params.stop_token_ids) == (("x", "yy"), (3, 4))
    assert (request.params.logit_bias, request.params.logprobs) == ({5: -100, 6: 1.5}, 4)
    assert (request.priority, request.cache_salt, request.deadline_s) == (-3, "tenant", 600.0)
    assert response.json()["id"] == "cmpl-mine-1"


@pytest.mark.parametrize("key", ["-1", "1.5", "x", "", "\uff19", "1e3", "99999999999999999999", "100000"])
async def test_a_bias_on_no_token_is_refused(http: httpx2.AsyncClient, key: str) -> None:
    response = await http.post("/v1/completions", json={"prompt": "a", "logit_bias": {key: 1}})
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "logit_bias"


async def test_another_model_is_not_found(openai: AsyncOpenAI) -> None:
    with pytest.raises(openai_errors.NotFoundError) as caught:
        await openai.completions.create(model="gpt-9", prompt="a")
    assert caught.value.code == "model_not_found"


async def test_the_model_may_be_left_out(http: httpx2.AsyncClient) -> None:
    assert (await http.post("/v1/completions", json={"prompt": "a"})).json()["model"] == MODEL


async def test_a_long_prompt_is_tokenised_off_the_loop(http: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    response = await http.post("/v1/completions", json={"prompt": "mill " * 5000})
    assert response.json()["error"]["code"] == "context_length_exceeded"

"""/v1/* as TGI speaks it, what it ignores, and what the strict form does instead; SageMaker's and Vertex' envelopes."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import pytest

from tests.support.scripted_engine import ScriptedEngine

ANSWER = "Hello there, miller."
MESSAGES = [{"role": "user", "content": "Hi"}]
TOOL = {
    "type": "function",
    "function": {"name": "turn", "parameters": {"type": "object", "properties": {"speed": {"type": "integer"}}}},
}


def chunks(text: str) -> list[dict[str, Any]]:
    frames = text.split("\n\n")
    assert frames[-2:] == ["data: [DONE]", ""]
    return [json.loads(frame.removeprefix("data:")) for frame in frames[:-2]]


async def chat(client: httpx2.AsyncClient, **body: Any) -> httpx2.Response:
    return await client.post("/v1/chat/completions", json={"messages": MESSAGES, **body})


async def test_a_reply_has_tgis_empty_id_and_its_words_for_the_end(
    tgi: httpx2.AsyncClient, strict: httpx2.AsyncClient
) -> None:
    reply = (await chat(tgi)).json()
    proper = (await chat(strict)).json()

    assert (reply["id"], reply["object"], reply["model"]) == ("", "chat.completion", "tiny")
    assert reply["choices"][0]["message"] == {"role": "assistant", "content": ANSWER}
    assert reply["choices"][0]["finish_reason"] == "stop"
    assert reply["usage"] == {"prompt_tokens": 18, "completion_tokens": 9, "total_tokens": 27}
    assert reply["system_fingerprint"].endswith("-native")
    assert proper["id"].startswith("chatcmpl-")


@pytest.mark.parametrize(("is_strict", "word"), [(False, "stop_sequence"), (True, "stop")])
async def test_only_the_end_token_is_translated(
    tgi: httpx2.AsyncClient, strict: httpx2.AsyncClient, engine: ScriptedEngine, is_strict: bool, word: str
) -> None:
    engine.stop_reason = "miller"
    client = strict if is_strict else tgi
    assert (await chat(client, stop="miller")).json()["choices"][0]["finish_reason"] == word
    assert chunks((await chat(client, stream=True)).text)[-1]["choices"][0]["finish_reason"] == word


async def test_the_usage_chunk_comes_only_when_it_is_asked_for(tgi: httpx2.AsyncClient) -> None:
    plain = chunks((await chat(tgi, stream=True)).text)
    told = chunks((await chat(tgi, stream=True, stream_options={"include_usage": True})).text)

    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in plain) == ANSWER
    assert all(chunk["usage"] is None for chunk in plain)
    assert len(told) == len(plain) + 1
    assert told[-1]["choices"] == []
    assert told[-1]["usage"]["total_tokens"] == 27


async def test_temperature_and_presence_penalty_mean_what_they_mean_in_tgi(
    tgi: httpx2.AsyncClient, engine: ScriptedEngine
) -> None:
    await chat(tgi, temperature=0)
    await chat(tgi)
    await chat(tgi, presence_penalty=0.5, max_tokens=3, n=4, logit_bias={"1": 2}, model="any-name")

    params = [request.params for request in engine.requests]
    assert [one.temperature for one in params] == [0.0, 1.0, 1.0]
    assert (params[2].repetition_penalty, params[2].max_tokens, params[2].n) == (2.5, 3, 1)


@pytest.mark.parametrize(
    ("body", "status"),
    [({"n": 2}, 422), ({"logit_bias": {"1": 2}}, 422), ({"presence_penalty": 1}, 422), ({"model": "other"}, 404)],
)
async def test_the_strict_form_ignores_nothing(strict: httpx2.AsyncClient, body: dict[str, Any], status: int) -> None:
    assert (await chat(strict, **body)).status_code == status
    assert (await chat(strict, n=1, model="tgi", logit_bias={})).status_code == 200


async def test_an_error_in_a_stream_has_its_status_inside(tgi: httpx2.AsyncClient) -> None:
    response = await chat(tgi, stream=True, max_tokens=0)
    assert response.status_code == 200
    message = "Input validation error: `max_new_tokens` must be strictly positive"
    assert chunks(response.text) == [{"error": {"message": message, "http_status_code": 422}}]


async def test_a_forced_call_is_one_with_the_id_0(tgi: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    engine.answers = ['{"speed": 3}']
    for choice in ({"type": "function", "function": {"name": "turn"}}, {"function": {"name": "turn"}}, "turn"):
        message = (await chat(tgi, tools=[TOOL], tool_choice=choice)).json()["choices"][0]["message"]
        function = {"name": "turn", "arguments": '{"speed": 3}', "description": None}
        assert message == {
            "role": "assistant", "tool_calls": [{"id": "0", "type": "function", "function": function}]
        }  # fmt: skip
        grammar = engine.requests[-1].params.grammar
        assert grammar is not None
        assert grammar.kind == "json_schema"
    streamed = chunks((await chat(tgi, tools=[TOOL], tool_choice="turn", stream=True)).text)
    calls = [call for chunk in streamed for call in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert "".join(call["function"]["arguments"] for call in calls) == '{"speed": 3}'
    assert streamed[-1]["choices"][0]["finish_reason"] == "stop"


async def test_tools_and_templates_that_do_not_fit_have_errors_of_their_own(
    tgi: httpx2.AsyncClient, engine: ScriptedEngine
) -> None:
    refused = await chat(tgi, tools=[TOOL], tool_choice="missing")
    assert (refused.status_code, refused.json()["error_type"]) == (422, "tool_error")
    refused = await chat(tgi, messages=[{"role": "user", "content": [{"type": "image_url"}]}])
    assert (refused.status_code, refused.json()["error_type"]) == (422, "template_error")
    refused = await chat(tgi, messages=[])
    assert (refused.status_code, refused.json()["error_type"]) == (422, "template_error")


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        ({"type": "json_object"}, "json_object"),
        ({"type": "json_object", "value": {"type": "object", "properties": {}}}, "json_schema"),
        ({"type": "json", "value": {"type": "object", "properties": {}}}, "json_schema"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}, "json_schema"),
        ({"type": "json_schema", "value": {"name": "x", "schema": {"properties": {}}}}, "json_schema"),
        ({"type": "regex", "value": "a+"}, "regex"),
    ],
)
async def test_both_ways_to_ask_for_a_form_are_understood(
    tgi: httpx2.AsyncClient, engine: ScriptedEngine, form: dict[str, Any], kind: str
) -> None:
    assert (await chat(tgi, response_format=form)).status_code == 200
    grammar = engine.requests[-1].params.grammar
    assert grammar is not None
    assert grammar.kind == kind


async def test_completions_are_a_choice_a_prompt(tgi: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    reply = (await tgi.post("/v1/completions", json={"prompt": ["a", "bc"], "max_tokens": 2})).json()
    assert [(choice["index"], choice["text"]) for choice in reply["choices"]] == [(0, "Hello th"), (1, "Hello th")]
    assert reply["usage"] == {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}

    found = chunks((await tgi.post("/v1/completions", json={"prompt": "a", "stream": True})).text)
    assert "".join(chunk["choices"][0]["text"] for chunk in found) == ANSWER
    assert [chunk["choices"][0]["finish_reason"] for chunk in found] == [""] * 8 + ["eos_token"]
    assert found[-1]["usage"]["completion_tokens"] == 9


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"prompt": ["x"] * 5}, "batch size exceeded"),
        ({"prompt": "x", "suffix": "y"}, "suffix not supported"),
        ({"prompt": []}, "validation"),
        ({"prompt": "x", "repetition_penalty": 0}, "validation"),
    ],
)
async def test_completions_are_refused_in_tgis_words(
    tgi: httpx2.AsyncClient, body: dict[str, Any], kind: str
) -> None:
    response = await tgi.post("/v1/completions", json=body)
    assert (response.status_code, response.json()["error_type"]) == (422, kind)


async def test_sagemaker_sends_any_of_the_three_bodies(tgi: httpx2.AsyncClient) -> None:
    assert (await tgi.post("/invocations", json={"inputs": "x"})).json() == [{"generated_text": ANSWER}]
    assert (await tgi.post("/invocations", json={"messages": MESSAGES})).json()["object"] == "chat.completion"
    assert (await tgi.post("/invocations", json={"prompt": "x"})).json()["object"] == "text_completion"
    streamed = await tgi.post("/invocations", json={"inputs": "x", "stream": True})
    assert streamed.text.startswith('data:{"index":1,')
    assert (await tgi.post("/invocations", json={})).status_code == 422


async def test_vertex_gets_a_text_an_instance(tgi: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    instances = [{"inputs": "x", "parameters": {"max_new_tokens": 2}}, {"messages": MESSAGES}]
    response = await tgi.post("/vertex", json={"instances": instances})
    assert response.json() == {"predictions": ["Hello th", ANSWER]}
    assert engine.requests[0].params.temperature == 1.0  # Vertex always samples
    assert (await tgi.post("/vertex", json={"instances": []})).status_code == 422

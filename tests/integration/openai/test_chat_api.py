"""/v1/chat/completions of a real server: formats that must hold whatever a random model would rather say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema_rs
import openai
import pytest
import tokenizers
import torch
from openai import OpenAI
from transformers import AutoTokenizer, LlamaForCausalLM

HI: list[Any] = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How does a mill work?"}]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "kind": {"enum": ["water", "wind"]},
        "wheels": {"type": "integer", "minimum": 1, "maximum": 9},
        "turns": {"type": "boolean"},
    },
    "required": ["kind", "wheels", "turns"],
    "additionalProperties": False,
}
GRIND: Any = {"type": "function", "function": {"name": "grind", "description": "Grinds.", "parameters": SCHEMA}}
STOP: Any = {"type": "function", "function": {"name": "stop_wheel", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def tokenizer(checkpoint: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(checkpoint / "tokenizer.json"))


def test_the_prompt_and_the_answer_are_those_of_transformers(client: OpenAI, checkpoint: Path) -> None:
    oracle = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    encoder = AutoTokenizer.from_pretrained(checkpoint)
    prompt = encoder.apply_chat_template(HI, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    with torch.inference_mode():
        output = oracle.generate(prompt, max_new_tokens=16, do_sample=False)[0, prompt.shape[1] :]
    reply = client.chat.completions.create(model="tiny", messages=HI, max_completion_tokens=16, temperature=0)
    assert reply.usage is not None
    assert reply.usage.prompt_tokens == prompt.shape[1]
    assert reply.choices[0].message.content == encoder.decode(output, skip_special_tokens=True)


def test_a_stream_says_the_same_as_a_whole_reply(client: OpenAI) -> None:
    options: dict[str, Any] = {"model": "tiny", "messages": HI, "max_tokens": 30, "seed": 1, "n": 2}
    whole = client.chat.completions.create(**options)
    streamed = ["", ""]
    usage = None
    for chunk in client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            streamed[choice.index] += choice.delta.content or ""
        usage = chunk.usage
    assert streamed == [choice.message.content for choice in whole.choices]
    assert usage is not None
    assert whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_logprobs_are_of_the_tokens_that_were_said(client: OpenAI) -> None:
    reply = client.chat.completions.create(
        model="tiny", messages=HI, max_tokens=10, temperature=0, logprobs=True, top_logprobs=3
    )
    content = reply.choices[0].logprobs.content if reply.choices[0].logprobs else None
    assert content is not None
    assert len(content) == 10
    assert b"".join(bytes(token.bytes or []) for token in content).decode("utf-8", "replace") == (
        reply.choices[0].message.content
    )
    for token in content:
        best = token.top_logprobs[0]
        assert (best.token, best.logprob) == (token.token, token.logprob)  # greedy takes the likeliest
        assert [top.logprob for top in token.top_logprobs] == sorted(
            (t.logprob for t in token.top_logprobs), reverse=True
        )


@pytest.mark.parametrize("seed", range(4))
def test_json_of_a_schema_is_valid_whatever_the_model_would_say(client: OpenAI, seed: int) -> None:
    reply = client.chat.completions.create(
        model="tiny",
        messages=HI,
        seed=seed,
        max_tokens=400,
        response_format={"type": "json_schema", "json_schema": {"name": "mill", "schema": SCHEMA, "strict": True}},
    )
    assert reply.choices[0].finish_reason == "stop"
    jsonschema_rs.validate(SCHEMA, json.loads(reply.choices[0].message.content or ""))


def test_a_json_object_is_one(client: OpenAI, tokenizer: tokenizers.Tokenizer) -> None:
    reply = client.chat.completions.create(
        model="tiny",
        messages=HI,
        max_tokens=200,
        logit_bias={str(tokenizer.token_to_id(text)): 20 for text in ('"', "}", ":", "1")},
        response_format={"type": "json_object"},
    )
    assert reply.choices[0].finish_reason == "stop"
    assert isinstance(json.loads(reply.choices[0].message.content or ""), dict)


@pytest.mark.parametrize(
    ("extra", "pattern"),
    [
        ({"guided_choice": ["to grind", "to turn"]}, "to grind|to turn"),
        ({"guided_regex": "[a-c]{3}-[0-9]{2}"}, "[a-c]{3}-[0-9]{2}"),
        ({"structured_outputs": {"choice": ["é", "ü"]}}, "é|ü"),
        ({"guided_grammar": 'start: "x" /[0-9]/ "y"'}, "x[0-9]y"),
    ],
)
def test_text_is_held_to_a_form(client: OpenAI, extra: dict[str, Any], pattern: str) -> None:
    reply = client.chat.completions.create(model="tiny", messages=HI, max_tokens=60, extra_body=extra)
    assert re.fullmatch(pattern, reply.choices[0].message.content or "")


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_a_named_function_is_called_with_valid_arguments(client: OpenAI, stream: bool, seed: int) -> None:
    choice: Any = {"type": "function", "function": {"name": "grind"}}
    reply = chat(client, stream, seed=seed, tools=[GRIND, STOP], tool_choice=choice)
    assert reply.choices[0].finish_reason == "tool_calls"
    (call,) = reply.choices[0].message.tool_calls
    assert call.function.name == "grind"
    jsonschema_rs.validate(SCHEMA, json.loads(call.function.arguments))


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("seed", range(2))
def test_required_calls_are_valid(client: OpenAI, stream: bool, seed: int) -> None:
    reply = chat(client, stream, seed=seed, tools=[GRIND, STOP], tool_choice="required", parallel_tool_calls=False)
    assert reply.choices[0].finish_reason == "tool_calls"
    assert not reply.choices[0].message.content
    (call,) = reply.choices[0].message.tool_calls
    schemas = {"grind": SCHEMA, "stop_wheel": {"type": "object"}}
    jsonschema_rs.validate(schemas[call.function.name], json.loads(call.function.arguments))


def chat(client: OpenAI, stream: bool, **options: Any) -> Any:
    """The whole reply, put together by the client's own helper when it was streamed."""
    options = {"model": "tiny", "messages": HI, "max_tokens": 400, **options}
    if not stream:
        return client.chat.completions.create(**options)
    with client.chat.completions.stream(**options) as running:
        return running.get_final_completion()


def test_a_random_model_that_may_call_just_talks(client: OpenAI) -> None:
    asked: Any = {"model": "tiny", "tools": [GRIND], "max_tokens": 8, "extra_body": {"ignore_eos": True}}
    reply = client.chat.completions.create(messages=HI, temperature=0, **asked)
    assert reply.choices[0].message.content
    assert reply.choices[0].message.tool_calls is None


def test_a_conversation_with_a_tools_answer_is_understood(client: OpenAI) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "grind", "arguments": "{}"}}
    messages: list[Any] = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "done"},
    ]
    asked: Any = {"model": "tiny", "tools": [GRIND], "max_tokens": 4, "extra_body": {"ignore_eos": True}}
    without = client.chat.completions.create(messages=HI, **asked)
    reply = client.chat.completions.create(messages=messages, **asked)
    assert reply.usage is not None
    assert without.usage is not None
    assert reply.usage.completion_tokens == 4
    assert reply.usage.prompt_tokens > without.usage.prompt_tokens


def test_a_conversation_that_is_too_long_has_openais_code(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "mill " * 2000}])
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")


@pytest.mark.parametrize(
    "schema",
    [
        {"anyOf": [{"type": "string", "pattern": "(a{1,999}){1,999}"}] * 50},
        {"type": "string", "pattern": "(((a{0,99}){0,99}){0,99}){0,99}"},
        {"$ref": "https://example.org/schema"},
        {"type": "object", "properties": {f"p{k}": {"type": "string"} for k in range(20000)}},
    ],
)
def test_a_schema_bomb_is_refused_and_streams_go_on(client: OpenAI, schema: dict[str, Any]) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "bomb", "schema": schema}}
    with client.chat.completions.create(model="tiny", messages=HI, max_tokens=100, stream=True) as running:
        next(iter(running))
        with pytest.raises(openai.BadRequestError) as caught:
            client.chat.completions.create(model="tiny", messages=HI, response_format=form)
        assert caught.value.param == "response_format"
        assert sum(1 for _ in running) > 0


def test_models_are_listed(client: OpenAI) -> None:
    (model,) = client.models.list().data
    assert model.id == "tiny"
    assert client.models.retrieve("tiny").id == "tiny"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("huge")

"""/v1/chat/completions through the OpenAI client, on a scripted engine."""

from __future__ import annotations

import json
from typing import Any

import httpx2
import openai as openai_errors
import pytest
from openai import AsyncOpenAI
from starlette.applications import Starlette

from millpond.serve.http.app import make_app
from millpond.serve.settings import ServeSettings
from tests.support.scripted_engine import MODEL, ScriptedEngine
from tests.support.tiny_checkpoints import make_text

HI: list[Any] = [{"role": "user", "content": "hi"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


def shown(engine: ScriptedEngine) -> str:
    """The prompt the engine got, as text."""
    return engine.text.tokenizer.decode(engine.requests[-1].prompt_token_ids, skip_special_tokens=False)


async def test_a_conversation_is_answered(openai: AsyncOpenAI, engine: ScriptedEngine) -> None:
    reply = await openai.chat.completions.create(model=MODEL, messages=HI)
    assert reply.choices[0].message.role == "assistant"
    assert reply.choices[0].message.content == "Hello there, miller."
    assert reply.choices[0].finish_reason == "stop"
    assert reply.id.startswith("chatcmpl-")
    assert reply.object == "chat.completion"
    assert shown(engine) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"


async def test_the_answer_may_be_as_long_as_fits(openai: AsyncOpenAI, engine: ScriptedEngine) -> None:
    await openai.chat.completions.create(model=MODEL, messages=HI)
    request = engine.requests[0]
    assert request.params.max_tokens == engine.info.max_model_len - len(request.prompt_token_ids)


@pytest.mark.parametrize("field", ["max_tokens", "max_completion_tokens"])
async def test_both_names_bound_the_answer(http: httpx2.AsyncClient, field: str) -> None:
    response = await http.post("/v1/chat/completions", json={"messages": HI, field: 3})
    assert response.json()["usage"]["completion_tokens"] == 3
    assert response.json()["choices"][0]["finish_reason"] == "length"


async def test_a_stream_begins_with_the_role_and_ends_with_the_reason(openai: AsyncOpenAI) -> None:
    stream = await openai.chat.completions.create(model=MODEL, messages=HI, stream=True, n=2)
    texts = ["", ""]
    roles: list[str | None] = [None, None]
    reasons: list[str | None] = [None, None]
    async for chunk in stream:
        assert chunk.object == "chat.completion.chunk"
        choice = chunk.choices[0]
        if roles[choice.index] is None:
            assert (choice.delta.role, choice.delta.content) == ("assistant", "")
            roles[choice.index] = choice.delta.role
        assert reasons[choice.index] is None
        texts[choice.index] += choice.delta.content or ""
        reasons[choice.index] = choice.finish_reason
    assert texts == ["Hello there, miller."] * 2
    assert reasons == ["stop", "stop"]


async def test_the_clients_own_stream_helper_understands_it(openai: AsyncOpenAI) -> None:
    async with openai.chat.completions.stream(
        model=MODEL, messages=HI, stream_options={"include_usage": True}
    ) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.content == "Hello there, miller."
    assert final.usage is not None
    assert final.usage.completion_tokens > 3


async def test_content_parts_of_text_are_joined(openai: AsyncOpenAI, engine: ScriptedEngine) -> None:
    parts: Any = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    await openai.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": parts}])
    assert "user\none\ntwo<|im_end|>" in shown(engine)


async def test_pictures_are_refused_by_name(openai: AsyncOpenAI) -> None:
    parts: Any = [{"type": "image_url", "image_url": {"url": "data:,"}}]
    with pytest.raises(openai_errors.BadRequestError) as caught:
        await openai.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": parts}])
    assert caught.value.param == "messages[0].content[0].type"


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [{"role": "king", "content": "a"}],
        [{"content": "a"}],
        [{"role": "user"}],
        [{"role": "user", "content": 5}],
        "a",
    ],
)
async def test_messages_without_sense_are_refused(http: httpx2.AsyncClient, messages: Any) -> None:
    response = await http.post("/v1/chat/completions", json={"messages": messages})
    assert response.status_code == 400
    assert response.json()["error"]["param"].startswith("messages")


async def test_a_developer_is_a_system_to_the_template(openai: AsyncOpenAI, engine: ScriptedEngine) -> None:
    await openai.chat.completions.create(model=MODEL, messages=[{"role": "developer", "content": "Be kind."}, *HI])
    assert shown(engine).startswith("<|im_start|>system\nBe kind.<|im_end|>")


async def test_the_final_message_can_be_continued(http: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    messages = [*HI, {"role": "assistant", "content": "Once upon"}]
    body = {"messages": messages, "continue_final_message": True, "echo": True}
    response = await http.post("/v1/chat/completions", json=body)
    assert shown(engine).endswith("<|im_start|>assistant\nOnce upon")
    assert response.json()["choices"][0]["message"]["content"] == "Once uponHello there, miller."


async def test_continuing_and_beginning_a_message_is_refused(http: httpx2.AsyncClient) -> None:
    body = {"messages": HI, "continue_final_message": True, "add_generation_prompt": True}
    response = await http.post("/v1/chat/completions", json=body)
    assert response.json()["error"]["param"] == "continue_final_message"


async def test_template_arguments_reach_the_template(engine: ScriptedEngine) -> None:
    engine.text = make_text("{{ messages[0].content }}{{ mood }}")
    async with http_of(engine) as http:
        body = {"messages": HI, "chat_template_kwargs": {"mood": "!!"}}
        assert (await http.post("/v1/chat/completions", json=body)).status_code == 200
    assert shown(engine) == "hi!!"


async def test_what_a_template_refuses_is_a_400(engine: ScriptedEngine) -> None:
    engine.text = make_text("{{ raise_exception('Roles must alternate') }}")
    async with http_of(engine) as http:
        response = await http.post("/v1/chat/completions", json={"messages": HI})
    assert response.status_code == 400
    assert "Roles must alternate" in response.json()["error"]["message"]


async def test_a_model_without_template_says_so(engine: ScriptedEngine) -> None:
    engine.text = make_text(None)
    async with http_of(engine) as http:
        response = await http.post("/v1/chat/completions", json={"messages": HI})
    assert response.json()["error"]["code"] == "no_chat_template"


def http_of(engine: ScriptedEngine) -> httpx2.AsyncClient:
    app: Starlette = make_app(engine, ServeSettings())
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://localhost")


async def test_logprobs_name_tokens_and_their_bytes(openai: AsyncOpenAI, engine: ScriptedEngine) -> None:
    engine.answers = ["é"]  # two tokens of half a character each
    reply = await openai.chat.completions.create(model=MODEL, messages=HI, logprobs=True, top_logprobs=2)
    logprobs = reply.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert b"".join(bytes(token.bytes or []) for token in logprobs.content[:2]) == "é".encode()
    assert [len(token.top_logprobs) for token in logprobs.content] == [2, 2, 2]
    assert logprobs.content[0].logprob == -0.5


async def test_a_stream_has_the_same_logprobs(openai: AsyncOpenAI) -> None:
    whole = await openai.chat.completions.create(model=MODEL, messages=HI, logprobs=True, top_logprobs=1)
    streamed: list[Any] = []
    async for chunk in await openai.chat.completions.create(
        model=MODEL, messages=HI, logprobs=True, top_logprobs=1, stream=True
    ):
        if chunk.choices[0].logprobs is not None:
            streamed += chunk.choices[0].logprobs.content or []
    assert whole.choices[0].logprobs is not None
    assert streamed == whole.choices[0].logprobs.content


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"prompt_logprobs": 1, "stream": True}, "prompt_logprobs"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema.schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "cow"}}}}, "response_format"),
        ({"guided_regex": "("}, "guided_*"),
        ({"guided_json": "{"}, "guided_*"),
        ({"guided_json": {}, "guided_regex": "a"}, "guided_*"),
        ({"guided_choice": ["a"], "response_format": {"type": "json_object"}}, "guided_*"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [WEATHER, WEATHER]}, "tools"),
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"request_id": "a b"}, "request_id"),
        ({"min_tokens": 5, "max_tokens": 2}, "min_tokens"),
        ({"stop": [""]}, "stop"),
    ],
)
async def test_fields_without_sense_are_refused_by_name(
    http: httpx2.AsyncClient, body: dict[str, Any], param: str
) -> None:
    response = await http.post("/v1/chat/completions", json={"messages": HI, **body})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == param


@pytest.mark.parametrize(
    ("body", "kind", "source"),
    [
        ({"response_format": {"type": "json_object"}}, "json_object", ""),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}}}},
            "json_schema",
            '{"type":"integer"}',
        ),
        ({"guided_json": '{"type": "null"}'}, "json_schema", '{"type":"null"}'),
        ({"guided_regex": "a+"}, "regex", "a+"),
        ({"guided_choice": ["yes", "no"]}, "choice", '["yes", "no"]'),
        ({"guided_grammar": 'start: "a"'}, "lark", 'start: "a"'),
        ({"structured_outputs": {"regex": "b"}}, "regex", "b"),
        ({"structured_outputs": {"json_object": True}}, "json_object", ""),
    ],
)
async def test_a_demand_on_the_text_becomes_a_grammar(
    http: httpx2.AsyncClient, engine: ScriptedEngine, body: dict[str, Any], kind: str, source: str
) -> None:
    response = await http.post("/v1/chat/completions", json={"messages": HI, **body})
    assert response.status_code == 200, response.text
    grammar = engine.requests[0].params.grammar
    assert grammar is not None
    assert (grammar.kind, grammar.source) == (kind, source)


async def test_text_as_format_is_no_demand(http: httpx2.AsyncClient, engine: ScriptedEngine) -> None:
    await http.post("/v1/chat/completions", json={"messages": HI, "response_format": {"type": "text"}})
    assert engine.requests[0].params.grammar is None


async def test_calls_in_the_answer_become_tool_calls(openai: AsyncOpenAI, engine: ScriptedEngine) -> None:
    engine.answers = ['<tool_call>{"name": "get_weather", "arguments": {"city": "Bern"}}</tool_call>']
    reply = await openai.chat.completions.create(model=MODEL, messages=HI, tools=[WEATHER])
    message = reply.choices[0].message
    assert message.content is None
    assert reply.choices[0].finish_reason == "tool_calls"
    assert message.tool_calls is not None
    call = message.tool_calls[0]
    assert call.type == "function"
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_weather", {"city": "Bern"})
    assert call.id.startswith("call_")


async def test_calls_are_streamed_as_deltas(openai: AsyncOpenAI, engine: ScriptedEngine) -> None:
    call = '<tool_call>{"name": "get_weather", "arguments": {"city": "Bern"}}</tool_call>'
    engine.answers = [f"I look.\n{call}\n{call}"]
    async with openai.chat.completions.stream(model=MODEL, messages=HI, tools=[WEATHER]) as stream:
        num_deltas = 0
        async for event in stream:
            num_deltas += event.type == "tool_calls.function.arguments.delta"
        final = await stream.get_final_completion()
    assert num_deltas > 4
    message = final.choices[0].message
    assert message.content == "I look."
    assert final.choices[0].finish_reason == "tool_calls"
    assert message.tool_calls is not None
    assert [call.function.arguments for call in message.tool_calls] == ['{"city": "Bern"}'] * 2
    assert len({call.id for call in message.tool_calls}) == 2


async def test_tools_the_template_does_not_know_are_described_to_the_model(
    openai: AsyncOpenAI, engine: ScriptedEngine
) -> None:
    messages: list[Any] = [{"role": "system", "content": "Be kind."}, *HI]
    await openai.chat.completions.create(model=MODEL, messages=messages, tools=[WEATHER])
    prompt = shown(engine)
    assert "Be kind.\n\n" in prompt
    assert '"name": "get_weather"' in prompt
    assert prompt.count("<|im_start|>system") == 1


async def test_tools_are_given_to_a_template_that_knows_them(engine: ScriptedEngine) -> None:
    engine.text = make_text("{{ tools | tojson }}")
    async with http_of(engine) as http:
        await http.post("/v1/chat/completions", json={"messages": HI, "tools": [WEATHER]})
    assert json.loads(shown(engine)) == [WEATHER]


async def test_no_tools_are_shown_when_none_may_be_called(openai: AsyncOpenAI, engine: ScriptedEngine) -> None:
    engine.answers = ["<tool_call>{}</tool_call>"]
    reply = await openai.chat.completions.create(model=MODEL, messages=HI, tools=[WEATHER], tool_choice="none")
    assert "get_weather" not in shown(engine)
    assert reply.choices[0].message.content == "<tool_call>{}</tool_call>"


async def test_a_named_function_gets_the_answer_as_arguments(openai: AsyncOpenAI, engine: ScriptedEngine) -> None:
    engine.answers = ['{"city": "Bern"}']
    choice: Any = {"type": "function", "function": {"name": "get_weather"}}
    reply = await openai.chat.completions.create(model=MODEL, messages=HI, tools=[WEATHER], tool_choice=choice)
    grammar = engine.requests[0].params.grammar
    assert grammar is not None
    assert json.loads(grammar.source) == WEATHER["function"]["parameters"]
    assert reply.choices[0].finish_reason == "tool_calls"
    assert reply.choices[0].message.tool_calls is not None
    assert reply.choices[0].message.tool_calls[0].function.arguments == '{"city": "Bern"}'


@pytest.mark.parametrize("stream", [True, False])
async def test_required_calls_are_read_from_the_array(
    openai: AsyncOpenAI, engine: ScriptedEngine, stream: bool
) -> None:
    engine.answers = ['[{"name": "get_weather", "arguments": {"city": "Bern"}}]']
    options: Any = {"model": MODEL, "messages": HI, "tools": [WEATHER], "tool_choice": "required"}
    if stream:
        async with openai.chat.completions.stream(**options) as running:
            reply: Any = await running.get_final_completion()
    else:
        reply = await openai.chat.completions.create(**options)
    assert [call.function.arguments for call in reply.choices[0].message.tool_calls] == ['{"city": "Bern"}']
    assert reply.choices[0].finish_reason == "tool_calls"


async def test_earlier_calls_reach_the_template_as_objects(engine: ScriptedEngine) -> None:
    engine.text = make_text("{{ messages[1].tool_calls[0].function.arguments.city }}|{{ messages[2].tool_call_id }}")
    call = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Bern"}'}}
    messages = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "sunny"},
    ]
    async with http_of(engine) as http:
        assert (await http.post("/v1/chat/completions", json={"messages": messages})).status_code == 200
    assert shown(engine) == "Bern|call_1"

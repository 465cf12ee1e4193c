"""Chat templates in the styles of real models, against transformers' `apply_chat_template`."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from millpond.base.errors import CheckpointError, RequestError
from millpond.inference.text import ChatTemplate
from tests.support.tokenizer_files import train_byte_level

SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}
CHATML = """\
{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
You are a small model<|im_end|>
' }}{% endif %}{{'<|im_start|>' + message['role'] + '
' + message['content'] + '<|im_end|>' + '
'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
' }}{% endif %}"""
LLAMA3 = """\
{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: " + date_string + "\\n\\n" }}
{%- if tools is not none %}
    {%- for t in tools %}
        {{- t | tojson(indent=4) }}
        {{- "\\n\\n" }}
    {%- endfor %}
{%- endif %}
{{- system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
        {{- message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {%- if not message.tool_calls|length == 1 %}
            {{- raise_exception("This model only supports single tool-calls at once!") }}
        {%- endif %}
        {%- set tool_call = message.tool_calls[0].function %}
        {{- '{"name": "' + tool_call.name + '", ' ~ '"parameters": ' ~ (tool_call.arguments | tojson) ~ "}<|eot_id|>" }}
    {%- elif message.content is mapping or message.content is iterable %}
        {{- message.content | tojson }}
    {%- else %}
        {{- message.content }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
QWEN = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and not message.content.startswith('<tool_response>') %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set content = message.content or '' %}
        {%- set reasoning = message.reasoning_content or '' %}
        {%- if '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index and reasoning %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning.strip('\\n') }}
            {{- '\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
            {{- '\\n<tool_call>\\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
            {%- if tool_call.arguments is string %}{{- tool_call.arguments }}
            {%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
            {{- '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == "tool" %}
        {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
        {{- '\\n<tool_response>\\n' }}{{- message.content }}{{- '\\n</tool_response>' }}
        {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\\n' }}{%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif %}
{%- endif %}
"""
GEMMA = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
    {%- set loop_messages = messages[1:] -%}
{%- else -%}
    {%- set first_user_prefix = "" -%}
    {%- set loop_messages = messages -%}
{%- endif -%}
{%- for message in loop_messages -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
    {%- endif -%}
    {%- set role = "model" if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'text' -%}{{ item['text'] | trim }}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{'<start_of_turn>model\n'}}{%- endif -%}
"""
MACRO = """\
{%- macro show(kind, depth=0) -%}
    {%- if kind is mapping -%}
        {%- for key, value in kind|dictsort -%}{{ "  " * depth }}{{ key }}: {{ show(value, depth + 1) }}
        {%- if not loop.last %}, {% endif -%}{%- endfor -%}
    {%- elif kind is iterable and kind is not string -%}
        [{% for value in kind %}{{ show(value) }}{{ ", " if not loop.last }}{% endfor %}]
    {%- else -%}{{ kind }}{%- endif -%}
{%- endmacro -%}
{%- for message in messages if message.role != "system" recursive %}
{%- if loop.changed(message.role) %}[{{ loop.cycle("a", "b") }}{{ loop.revindex }}]{% endif %}
{%- generation %}{{ message.content | default("", true) | upper }}{% endgeneration -%}
{%- if loop.index > 5 %}{% break %}{% endif %}
{%- endfor %}
{{- show(tools or {}) }}{{ messages | map(attribute="role") | unique | join("+") }}
{{- messages | selectattr("role", "equalto", "user") | list | length }}{{ "%05.1f|%s" % (3.14159, "x") }}
{{- "{:>6}|{}".format("ab", none) }}{{ [1, 2] + [3] }}{{ {"a": 1}.items() | list }}{{ "<b>" | e }}{{ undefined_name }}
"""
STYLES = {"chatml": CHATML, "llama3": LLAMA3, "qwen": QWEN, "gemma": GEMMA, "macro": MACRO}
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": 'Weather of a <place> & "day"',
            "parameters": {"type": "object", "properties": {"city": {"type": "string", "enum": ["Bern", "Genève"]}}},
        },
    }
]
CHATS: dict[str, list[dict[str, Any]]] = {
    "one": [{"role": "user", "content": "Hi"}],
    "system": [{"role": "system", "content": " Be brief. "}, {"role": "user", "content": "  padded  \n"}],
    "turns": [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": "<think>\nadd\n</think>\n\n2"},
        {"role": "user", "content": "Größe 日本語 🎉 <b> {{ not_a_template }}"},
    ],
    "nulls": [
        {"role": "user", "content": "a", "name": None},
        {"role": "assistant", "content": "b", "tool_calls": None},
    ],
    "reasoning": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning": "because"}],
}
CALLS: list[dict[str, Any]] = [
    {"role": "user", "content": "Weather?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Genève"}}}],
    },
    {"role": "tool", "content": '{"t": 3}'},
    {"role": "tool", "content": "sunny"},
]


@pytest.fixture(scope="module")
def theirs() -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(tokenizer_object=train_byte_level(), **SPECIAL)


@pytest.mark.parametrize("adds_prompt", [True, False])
@pytest.mark.parametrize("chat", CHATS.values(), ids=CHATS.keys())
@pytest.mark.parametrize("style", STYLES)
def test_chats_read_as_transformers_writes_them(
    theirs: PreTrainedTokenizerFast, style: str, chat: list[dict[str, Any]], adds_prompt: bool
) -> None:
    expected = theirs.apply_chat_template(
        chat, chat_template=STYLES[style], tokenize=False, add_generation_prompt=adds_prompt
    )
    assert ChatTemplate(STYLES[style], SPECIAL).render(chat, add_generation_prompt=adds_prompt) == expected


@pytest.mark.parametrize("style", ["llama3", "qwen", "macro"])
def test_tools_read_as_transformers_writes_them(theirs: PreTrainedTokenizerFast, style: str) -> None:
    expected = theirs.apply_chat_template(
        CALLS, tools=TOOLS, chat_template=STYLES[style], tokenize=False, add_generation_prompt=True
    )
    assert ChatTemplate(STYLES[style], SPECIAL).render(CALLS, tools=TOOLS) == expected


def test_content_in_parts_reads_as_transformers_writes_it(theirs: PreTrainedTokenizerFast) -> None:
    chat = [{"role": "user", "content": [{"type": "text", "text": " a "}, {"type": "text", "text": "b"}]}]
    expected = theirs.apply_chat_template(chat, chat_template=GEMMA, tokenize=False, add_generation_prompt=True)
    assert ChatTemplate(GEMMA, SPECIAL).render(chat) == expected


@pytest.mark.parametrize(
    ("style", "content"),
    [
        ("chatml", "I think "),
        ("llama3", "I think "),
        ("gemma", "I think"),
        ("gemma", [{"type": "text", "text": "I think "}]),
    ],
)
def test_a_continued_message_ends_where_transformers_ends_it(
    theirs: PreTrainedTokenizerFast, style: str, content: Any
) -> None:
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": content}]
    expected = theirs.apply_chat_template(
        chat, chat_template=STYLES[style], tokenize=False, continue_final_message=True
    )
    template = ChatTemplate(STYLES[style], SPECIAL)
    assert template.render(chat, add_generation_prompt=False, continue_final_message=True) == expected


def test_extra_variables_reach_the_template(theirs: PreTrainedTokenizerFast) -> None:
    expected = theirs.apply_chat_template(
        CHATS["one"], chat_template=QWEN, tokenize=False, add_generation_prompt=True, enable_thinking=False
    )
    assert ChatTemplate(QWEN).render(CHATS["one"], extra={"enable_thinking": False}) == expected
    assert expected.endswith("</think>\n\n")


@pytest.mark.parametrize("name", ["messages", "tools", "add_generation_prompt", "_private"])
def test_extra_variables_do_not_replace_the_chat(name: str) -> None:
    with pytest.raises(RequestError, match="no variable a request may set"):
        ChatTemplate(CHATML).render(CHATS["one"], extra={name: 1})


def test_the_date_is_the_callers() -> None:
    template = ChatTemplate("{{ strftime_now('%d %b %Y') }}", now=lambda: datetime(2024, 7, 26))
    assert template.render(CHATS["one"]) == "26 Jul 2024"


def test_requests_with_tools_use_the_template_for_tools() -> None:
    template = ChatTemplate({"default": "plain", "tool_use": "tools"})
    assert (template.render(CHATS["one"]), template.render(CHATS["one"], tools=TOOLS)) == ("plain", "tools")


def test_what_a_template_refuses_is_the_requests_fault_in_its_words() -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    with pytest.raises(RequestError, match="refuses this chat: Conversation roles must alternate") as caught:
        ChatTemplate(GEMMA, SPECIAL).render(chat)
    assert caught.value.param == "messages"


def test_the_messages_are_not_changed() -> None:
    chat = [{"role": "user", "content": "Hi", "name": None}, {"role": "assistant", "content": "yes"}]
    before = [dict(message) for message in chat]
    ChatTemplate(CHATML).render(chat, add_generation_prompt=False, continue_final_message=True)
    assert chat == before


@pytest.mark.parametrize(
    ("chat", "reason"),
    [
        ([], "has no messages"),
        (["text"], "a message is not an object"),
        ([{"role": "user", "content": object()}], "holds a object"),
        ([{"role": "user"}], "fails on this chat"),
    ],
)
def test_a_chat_that_is_none_is_the_requests_fault(chat: Any, reason: str) -> None:
    with pytest.raises(RequestError, match=f"(?i){reason}"):
        ChatTemplate(CHATML).render(chat)


@pytest.mark.parametrize("message", [{"role": "assistant"}, {"role": "assistant", "content": []}])
def test_a_message_without_text_cannot_be_continued(message: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="no text to continue"):
        ChatTemplate(CHATML).render([message], add_generation_prompt=False, continue_final_message=True)


def test_a_template_that_drops_the_message_cannot_continue_it() -> None:
    chat = [{"role": "assistant", "content": "gone"}]
    with pytest.raises(RequestError, match="drops the last message"):
        ChatTemplate("content").render(chat, add_generation_prompt=False, continue_final_message=True)


def test_continuing_and_answering_exclude_each_other() -> None:
    with pytest.raises(RequestError, match="both continued and answered"):
        ChatTemplate(CHATML).render(CHATS["one"], continue_final_message=True)


@pytest.mark.parametrize("source", ["{% for %}", "{{ ", "{% unknown %}", "{% if %}" * 3])
def test_a_template_that_is_not_jinja_is_a_checkpoint_error(source: str) -> None:
    with pytest.raises(CheckpointError, match=r"not valid Jinja, line 1"):
        ChatTemplate(source)


def test_templates_without_a_default_are_a_checkpoint_error() -> None:
    with pytest.raises(CheckpointError, match=r"chat templates \(rag\) but no default one"):
        ChatTemplate({"rag": "x"})

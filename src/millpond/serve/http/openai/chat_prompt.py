"""From messages to prompt tokens: what chat templates expect, which is not quite what the API brings.

Templates want arguments of earlier calls as objects, contents as text, and know no "developer". A model whose template
has no place for tools is told about them in a system message.
"""

from __future__ import annotations

import json
from typing import Any

from millpond.inference.text import TextModel
from millpond.serve.http.errors import invalid
from millpond.serve.http.openai.chat_fields import ChatBody, ContentPart, Message
from millpond.serve.http.openai.tools import ToolUse, tool_dict, tool_instruction


def chat_prompt(body: ChatBody, use: ToolUse, text: TextModel) -> list[int]:
    """Renders and encodes a conversation; see `chat_text`."""
    # The template writes the special tokens itself.
    return text.tokenizer.encode(chat_text(body, use, text), bool(body.add_special_tokens))


def chat_text(body: ChatBody, use: ToolUse, text: TextModel) -> str:
    """Renders a conversation.

    Raises:
        ApiError: Something in the messages cannot be shown to the model.
        RequestError: The template refuses the conversation.
    """
    template = text.chat_template
    if template is None:
        raise invalid("This model has no chat template; use /v1/completions.", code="no_chat_template")
    continues, adds_prompt = _ending(body)
    messages = [_message(number, message) for number, message in enumerate(body.messages)]
    knows_tools = "tools" in template_text(text)
    if use.shown and not knows_tools:
        messages = _with_instruction(messages, tool_instruction(use.shown))
    return template.render(
        messages,
        tools=[tool_dict(tool) for tool in use.shown] if use.shown and knows_tools else None,
        add_generation_prompt=adds_prompt,
        continue_final_message=continues,
        extra=body.chat_template_kwargs or {},
    )


def template_text(text: TextModel) -> str:
    """Returns the source of the model's chat templates, to see what they know."""
    return "\n".join(text.chat_template.sources.values()) if text.chat_template is not None else ""


def last_text(body: ChatBody) -> str:
    """Returns the last message's text when the answer goes on in its role, for `echo`."""
    last = body.messages[-1]
    return _content(len(body.messages) - 1, last) if body.echo and last.role == "assistant" else ""


def _ending(body: ChatBody) -> tuple[bool, bool]:
    continues = bool(body.continue_final_message)
    if continues and body.add_generation_prompt:
        raise invalid(
            "continue_final_message goes on with a message and add_generation_prompt begins one; give one of them.",
            param="continue_final_message",
        )
    if continues and body.messages[-1].role != "assistant":
        raise invalid("continue_final_message needs a last message of the assistant.", param="continue_final_message")
    return continues, body.add_generation_prompt if body.add_generation_prompt is not None else not continues


def _message(number: int, message: Message) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "role": "system" if message.role == "developer" else message.role,
        "content": _content(number, message),
    }
    if message.name is not None:
        shown["name"] = message.name
    if message.tool_call_id is not None:
        shown["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        shown["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.function.name, "arguments": _arguments(call.function.arguments)},
            }
            for call in message.tool_calls
        ]
    return shown


def _content(number: int, message: Message) -> str:
    content = message.content
    if content is None:
        if message.role in ("system", "developer", "user"):
            raise invalid(f"Message {number} has no content.", param=f"messages[{number}].content")
        return ""
    if isinstance(content, str):
        return content
    return "\n".join(_part(f"messages[{number}].content[{place}]", part) for place, part in enumerate(content))


def _part(param: str, part: ContentPart) -> str:
    text = {"text": part.text, "refusal": part.refusal}.get(part.type)
    if text is None:
        raise invalid(
            f"A content part of type {part.type[:40]!a} cannot be used; the model reads text.", param=f"{param}.type"
        )
    return text


def _arguments(arguments: str) -> Any:
    """Returns the object the text holds; text that holds none, which models do write, stays as it is."""
    try:
        value = json.loads(arguments)
    except (ValueError, RecursionError):
        return arguments
    return value if isinstance(value, dict) else arguments


def _with_instruction(messages: list[dict[str, Any]], instruction: str) -> list[dict[str, Any]]:
    if messages[0]["role"] == "system":
        first = messages[0] | {"content": f"{messages[0]['content']}\n\n{instruction}"}
        return [first, *messages[1:]]
    return [{"role": "system", "content": instruction}, *messages]

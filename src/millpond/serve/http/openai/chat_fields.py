"""The fields of POST /v1/chat/completions: messages, tools and what is chat's own."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from millpond.serve.http.openai.fields import GenerationFields, NonNegative

FunctionName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]


class ContentPart(msgspec.Struct, frozen=True):
    """A part of a message. Only text is understood; other types are refused by name."""

    type: str
    text: str | None = None
    refusal: str | None = None


class MessageFunction(msgspec.Struct, frozen=True):
    """The function of an earlier call. `arguments` is JSON text."""

    name: str
    arguments: str = "{}"


class MessageToolCall(msgspec.Struct, frozen=True):
    """A call the assistant made earlier."""

    function: MessageFunction
    id: str = ""
    type: Literal["function"] = "function"


class Message(msgspec.Struct, frozen=True):
    """One message of the conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[MessageToolCall] | None = None
    tool_call_id: str | None = None


class ToolFunction(msgspec.Struct, frozen=True):
    """A function the model may call; `parameters` is a JSON schema."""

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True):
    """Something the model may use."""

    type: Literal["function"]
    function: ToolFunction


class NamedFunction(msgspec.Struct, frozen=True):
    """Says which function."""

    name: FunctionName


class NamedToolChoice(msgspec.Struct, frozen=True):
    """The one function that must be called."""

    type: Literal["function"]
    function: NamedFunction


class ChatBody(GenerationFields, frozen=True, kw_only=True):
    """The body of POST /v1/chat/completions."""

    messages: Annotated[list[Message], Meta(min_length=1)]
    max_completion_tokens: Annotated[
        NonNegative | None, Meta(description="Longest answer; as much as fits when neither it nor max_tokens is given.")
    ] = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = None
    parallel_tool_calls: bool | None = None
    # From here on as in vLLM.
    echo: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None

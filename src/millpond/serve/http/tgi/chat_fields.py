"""The bodies of TGI's OpenAI routes. What it ignores is named here too, so that the strict form can refuse it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from millpond.serve.http.openai.chat_fields import Message, Tool
from millpond.serve.http.tgi.fields import U32, Count


class StreamOptions(msgspec.Struct, frozen=True):
    """What a stream holds beside the text."""

    include_usage: bool = False


class ResponseFormat(msgspec.Struct, frozen=True):
    """The form the answer must have: TGI's with `value`, or OpenAI's with `json_schema`."""

    type: Literal["text", "json", "json_object", "json_schema", "regex"]
    value: Any = None
    json_schema: dict[str, Any] | None = None


class FunctionName(msgspec.Struct, frozen=True):
    """Says which function."""

    name: str


class FunctionChoice(msgspec.Struct, frozen=True):
    """The one function that must be called."""

    function: FunctionName
    type: str = "function"


class OpenAIFields(msgspec.Struct, frozen=True, kw_only=True):
    """What both routes take."""

    model: Annotated[str | None, Meta(description="Ignored by the compatible form: there is one model.")] = None
    max_tokens: Annotated[U32 | None, Meta(description="As much as fits when left out.")] = None
    temperature: Annotated[float | None, Meta(description="0 takes the likeliest token.")] = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    stop: str | list[str] | None = None
    seed: Count | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: Annotated[U32 | None, Meta(description="Ignored by the compatible form, which gives one answer.")] = None
    logit_bias: Annotated[Any, Meta(description="Ignored by the compatible form.")] = None


class ChatBody(OpenAIFields, frozen=True, kw_only=True):
    """The body of /v1/chat/completions and /chat_tokenize."""

    messages: list[Message]
    presence_penalty: Annotated[
        float | None, Meta(description="The compatible form makes a repetition penalty of it, 2 higher.")
    ] = None
    logprobs: bool | None = None
    top_logprobs: U32 | None = None
    max_completion_tokens: U32 | None = None
    tools: list[Tool] | None = None
    tool_choice: str | FunctionChoice | None = None
    tool_prompt: Annotated[str | None, Meta(description="Put under the last message where there are tools.")] = None
    guideline: Annotated[str | None, Meta(description="A variable of the chat template.")] = None
    response_format: ResponseFormat | None = None


class CompletionBody(OpenAIFields, frozen=True, kw_only=True):
    """The body of /v1/completions."""

    prompt: str | list[str]
    suffix: str | None = None
    repetition_penalty: float | None = None

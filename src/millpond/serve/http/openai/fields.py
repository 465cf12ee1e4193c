"""The request fields that completions and chat share, and those that are refused by name.

msgspec checks types and ranges while decoding, and the OpenAPI document is generated from the same annotations. Fields
nobody declared are ignored, as OpenAI does, except those in `UNSUPPORTED`: ignoring them would give a wrong answer.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

_INT32_MAX = 2**31 - 1
_INT64_MAX = 2**63 - 1

NonNegative = Annotated[int, Meta(ge=0, le=_INT32_MAX)]
TokenId = Annotated[int, Meta(ge=0, le=_INT32_MAX)]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Bias = Annotated[float, Meta(ge=-100, le=100)]
Salt = Annotated[str, Meta(min_length=1, max_length=256, description="Prompts share the cache only within it.")]
ShortText = Annotated[str, Meta(max_length=256)]


class StreamOptions(msgspec.Struct, frozen=True):
    """What a stream holds beside the text."""

    include_usage: Annotated[bool | None, Meta(description="Send a last chunk with the usage of the request.")] = None
    continuous_usage_stats: Annotated[bool | None, Meta(description="Send the usage so far with every chunk.")] = None


class JsonSchemaFormat(msgspec.Struct, frozen=True):
    """A JSON schema and what it is called."""

    name: ShortText = "schema"
    schema: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    """The form the answer must have."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None


class StructuredOutputs(msgspec.Struct, frozen=True):
    """vLLM's constraint on the text: exactly one field is given."""

    json: dict[str, Any] | str | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None
    json_object: bool | None = None


class GenerationFields(msgspec.Struct, frozen=True, kw_only=True):
    """What both endpoints take. None means the default of the API."""

    model: Annotated[str | None, Meta(description="A name from /v1/models; the served model when left out.")] = None
    n: Annotated[int, Meta(ge=1, le=128, description="How many choices for a prompt.")] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2, description="0 takes the likeliest token.")] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Annotated[str | list[str] | None, Meta(description="Text before which the answer ends.")] = None
    seed: Annotated[int, Meta(ge=-_INT64_MAX, le=_INT64_MAX)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[str, Bias] | None, Meta(description="Token id to what is added to its logit.")] = None
    max_tokens: NonNegative | None = None
    response_format: ResponseFormat | None = None
    user: str | None = None
    # From here on as in vLLM.
    top_k: Annotated[int, Meta(ge=-1, le=_INT32_MAX, description="0 or -1: all tokens.")] | None = None
    min_p: Annotated[float, Meta(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=10)] | None = None
    stop_token_ids: list[TokenId] | None = None
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    min_tokens: NonNegative | None = None
    skip_special_tokens: bool | None = None
    add_special_tokens: bool | None = None
    prompt_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    priority: Annotated[int, Meta(ge=-_INT32_MAX, le=_INT32_MAX, description="Lower runs first.")] | None = None
    request_id: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._:-]{1,128}$")] | None = None
    cache_salt: Salt | None = None


# Fields whose silent loss would change the answer; null, false and empty values ask for nothing and pass.
UNSUPPORTED = {
    "suffix": "Text after the completion (suffix) is not supported: the models here only continue.",
    "functions": "functions is gone from the API; use tools.",
    "function_call": "function_call is gone from the API; use tool_choice.",
    "chat_template": "Templates are not taken from requests; start the server with --model.chat_template.",
    "allowed_token_ids": "allowed_token_ids is not supported; use logit_bias or structured_outputs.",
    "bad_words": "bad_words is not supported; use logit_bias.",
    "logits_processors": "logits_processors is not supported.",
    "truncate_prompt_tokens": "truncate_prompt_tokens is not supported; shorten the prompt.",
    "use_beam_search": "Beam search is offered by the Python API only.",
    "audio": "Audio output is not supported.",
    "web_search_options": "Web search is not supported.",
    "prompt_embeds": "Prompts are text or token ids here.",
}

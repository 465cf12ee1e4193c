"""What TGI's OpenAI routes answer with: OpenAI's objects with TGI's peculiarities."""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType


class Usage(msgspec.Struct, frozen=True):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(msgspec.Struct, frozen=True):
    """An alternative."""

    token: str
    logprob: float


class ContentLogprob(msgspec.Struct, frozen=True):
    """A token and its alternatives."""

    token: str
    logprob: float
    top_logprobs: list[TopLogprob]


class Logprobs(msgspec.Struct, frozen=True):
    """The tokens of an answer or of a chunk."""

    content: list[ContentLogprob]


class CalledFunction(msgspec.Struct, frozen=True):
    """The function a model calls. `arguments` is JSON text."""

    name: str | None
    arguments: str
    description: str | None = None


class ToolCall(msgspec.Struct, frozen=True):
    """A call, or a piece of one."""

    id: str
    type: Literal["function"]
    function: CalledFunction
    index: int | UnsetType = UNSET


class OutputMessage(msgspec.Struct, frozen=True):
    """The assistant's message, or what is new in it."""

    role: str
    content: str | UnsetType = UNSET
    tool_calls: list[ToolCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, frozen=True):
    """The answer."""

    index: int
    message: OutputMessage
    logprobs: Logprobs | None
    finish_reason: str


class ChatReply(msgspec.Struct, frozen=True):
    """The answer to /v1/chat/completions."""

    object: Literal["chat.completion"]
    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage


class ChunkChoice(msgspec.Struct, frozen=True):
    """A piece of the answer."""

    index: int
    delta: OutputMessage
    logprobs: Logprobs | None
    finish_reason: str | None


class ChatChunk(msgspec.Struct, frozen=True):
    """One event of a chat stream."""

    object: Literal["chat.completion.chunk"]
    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | None = None


class CompletionChoice(msgspec.Struct, frozen=True):
    """One completion, or a piece of it."""

    index: int
    text: str
    logprobs: None
    finish_reason: str | None


class CompletionReply(msgspec.Struct, frozen=True):
    """The answer to /v1/completions, or one event of its stream."""

    object: Literal["text_completion"]
    id: str
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | UnsetType = UNSET

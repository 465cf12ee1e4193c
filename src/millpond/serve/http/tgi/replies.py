"""What TGI's own routes answer with. Plain data, encoded by msgspec; the OpenAPI document is made from it too.

A field that is `UNSET` is left out of the JSON, one that is None is `null`.
"""

from __future__ import annotations

from typing import Literal

import msgspec
from msgspec import UNSET, UnsetType

FinishReason = Literal["length", "eos_token", "stop_sequence"]


class Token(msgspec.Struct, frozen=True):
    """A generated token."""

    id: int
    text: str
    logprob: float
    special: bool


class PrefillToken(msgspec.Struct, frozen=True):
    """A token of the prompt; the first has no log-probability."""

    id: int
    text: str
    logprob: float | None


class BestOfSequence(msgspec.Struct, frozen=True):
    """An answer that was not the best."""

    generated_text: str
    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[Token]
    top_tokens: list[list[Token]] | UnsetType = UNSET


class Details(msgspec.Struct, frozen=True):
    """How an answer came about."""

    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    prefill: list[PrefillToken]
    tokens: list[Token]
    best_of_sequences: list[BestOfSequence] | UnsetType = UNSET
    top_tokens: list[list[Token]] | UnsetType = UNSET


class GenerateReply(msgspec.Struct, frozen=True):
    """The answer to /generate."""

    generated_text: str
    details: Details | UnsetType = UNSET


class StreamDetails(msgspec.Struct, frozen=True):
    """How a streamed answer ended."""

    finish_reason: FinishReason
    generated_tokens: int
    seed: int | None
    input_length: int


class StreamReply(msgspec.Struct, frozen=True):
    """One event of a stream: one token. The last one holds the whole text."""

    index: int
    token: Token
    top_tokens: list[Token] | UnsetType = UNSET
    generated_text: str | None = None
    details: StreamDetails | None = None


class Info(msgspec.Struct, frozen=True):
    """What is served, and within which limits."""

    model_id: str
    model_sha: str | None
    model_pipeline_tag: str | None
    max_concurrent_requests: int
    max_best_of: int
    max_stop_sequences: int
    max_input_tokens: int
    max_total_tokens: int
    validation_workers: int
    max_client_batch_size: int
    router: str
    version: str
    sha: str | None
    docker_label: str | None


class SimpleToken(msgspec.Struct, frozen=True):
    """A token of a text, and the characters it covers."""

    id: int
    text: str
    start: int
    stop: int


class ChatTokens(msgspec.Struct, frozen=True):
    """A conversation as the model sees it."""

    tokenize_response: list[SimpleToken]
    templated_text: str


class VertexReply(msgspec.Struct, frozen=True):
    """The answer to /vertex."""

    predictions: list[str]


class ModelCard(msgspec.Struct, frozen=True):
    """The served model."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(msgspec.Struct, frozen=True):
    """The served models: one."""

    object: Literal["list"]
    data: list[ModelCard]

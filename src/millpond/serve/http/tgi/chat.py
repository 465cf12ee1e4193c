"""POST /v1/chat/completions in TGI's dialect: a token a chunk, an empty id, TGI's words for the end."""

from __future__ import annotations

import msgspec
from msgspec import UNSET
from starlette.responses import Response

from millpond.serve.http.body import decode_body
from millpond.serve.http.openai.tool_forms import CallPiece, ToolReader
from millpond.serve.http.openai.tools import ToolUse
from millpond.serve.http.stream import Pour
from millpond.serve.http.tgi.chat_fields import ChatBody
from millpond.serve.http.tgi.chat_replies import (
    CalledFunction,
    ChatChoice,
    ChatChunk,
    ChatReply,
    ChunkChoice,
    ContentLogprob,
    Logprobs,
    OutputMessage,
    ToolCall,
    TopLogprob,
    Usage,
)
from millpond.serve.http.tgi.chat_request import chat_parameters, check_model, rendered
from millpond.serve.http.tgi.generate import token_lists
from millpond.serve.http.tgi.replies import FinishReason, Token
from millpond.serve.http.tgi.server import TgiCall
from millpond.serve.http.tgi.streams import event, stream_answer
from millpond.serve.http.tgi.work import (
    Job,
    Prompt,
    Told,
    compute_headers,
    last_reason,
    prepare,
    run_stream,
    run_whole,
    times,
)

_CALL_ID = "0"


async def answer_chat(call: TgiCall) -> Response:
    """Answers one call."""
    server = call.server
    body = await decode_body(call.http, server.gateway, ChatBody, {}, server.settings.max_body_bytes)
    return await chat(call, body)


async def chat(call: TgiCall, body: ChatBody) -> Response:
    """Answers a body."""
    call.server.metrics.requests.add()
    if body.stream:
        return await stream_answer(call, lambda: _begin(call, body), compute_headers(""), is_openai=True)
    reply, headers = await whole_chat(call, body)
    return Response(msgspec.json.encode(reply), headers=headers, media_type="application/json")


async def whole_chat(call: TgiCall, body: ChatBody) -> tuple[ChatReply, dict[str, str]]:
    """Runs a body to its end; returns the reply and its headers."""
    job, use, model = await prepare_chat(call, body)
    output = (await run_whole(call, [job]))[0][0]
    tokens, top = token_lists(job, output, call.engine.text.tokenizer)
    writer = _Pieces(use.reader())
    text, calls = writer.add("".join(output.text), is_last=True)
    message = OutputMessage("assistant", text, UNSET) if not calls else OutputMessage("assistant", UNSET, joined(calls))
    is_strict = call.server.settings.is_strict
    reason = openai_reason(last_reason(output), is_strict, bool(calls))
    logprobs = _logprobs(tokens, top) if body.logprobs else None
    reply = ChatReply(
        "chat.completion",
        public_id(call, "chatcmpl"),
        call.created,
        model,
        fingerprint(call),
        [ChatChoice(0, message, logprobs, reason)],
        usage_of(job, len(output.token_ids)),
    )
    return reply, times(call, job, output)


def openai_reason(reason: FinishReason, is_strict: bool, has_calls: bool = False) -> str:
    """Returns the word for the end: TGI translates only the end-of-sequence token."""
    if is_strict:
        return "tool_calls" if has_calls and reason != "length" else "length" if reason == "length" else "stop"
    return "stop" if reason == "eos_token" else reason


def public_id(call: TgiCall, prefix: str) -> str:
    """Returns the answer's id, which TGI leaves empty."""
    return f"{prefix}-{call.http.state.request_id}" if call.server.settings.is_strict else ""


def fingerprint(call: TgiCall) -> str:
    """Returns what made the answer."""
    return f"{call.server.gateway.version}-native"


def usage_of(job: Job, num_tokens: int) -> Usage:
    """Returns how many tokens a job used."""
    return Usage(len(job.token_ids), num_tokens, len(job.token_ids) + num_tokens)


async def prepare_chat(call: TgiCall, body: ChatBody, number: int = 0) -> tuple[Job, ToolUse, str]:
    """Returns what a conversation gives to do, what its tools mean, and the model's name."""
    model = check_model(call, body.model)
    asked = chat_parameters(body, call.server.settings)
    made = await call.server.gateway.in_thread(lambda: rendered(call, body))
    job = await prepare(call, Prompt(made.text, add_special_tokens=False, grammar=made.grammar), asked, number)
    return job, made.use, model


async def _begin(call: TgiCall, body: ChatBody) -> Pour:
    job, use, model = await prepare_chat(call, body)
    writer = _ChunkWriter(call, body, job, _Pieces(use.reader()), model)
    return await run_stream(call, [job], lambda _, item: writer.take(item))


class _ChunkWriter:
    """Makes the chunks of a stream."""

    def __init__(self, call: TgiCall, body: ChatBody, job: Job, pieces: _Pieces, model: str) -> None:
        self._call = call
        self._body = body
        self._job = job
        self._pieces = pieces
        self._empty = ChatChunk(
            "chat.completion.chunk", public_id(call, "chatcmpl"), call.created, model, fingerprint(call), []
        )

    def take(self, item: Told) -> bytes:
        """Returns the frames of a token."""
        is_last = item.finish_reason is not None
        text, calls = self._pieces.add("" if item.token.special else item.token.text, is_last)
        reason = None
        if item.finish_reason is not None:
            is_strict = self._call.server.settings.is_strict
            reason = openai_reason(item.finish_reason, is_strict, self._pieces.has_calls)
        delta = OutputMessage("assistant", UNSET if calls and not text else text, calls or UNSET)
        logprobs = _logprobs([item.token], [item.top]) if self._body.logprobs else None
        data = self._frame([ChunkChoice(0, delta, logprobs, reason)])
        if is_last and self._body.stream_options is not None and self._body.stream_options.include_usage:
            data += self._frame([], usage_of(self._job, item.num_tokens))
        return data

    def _frame(self, choices: list[ChunkChoice], usage: Usage | None = None) -> bytes:
        return event(msgspec.json.encode(msgspec.structs.replace(self._empty, choices=choices, usage=usage)))


class _Pieces:
    """Splits an answer's text into what is said and what is called."""

    def __init__(self, reader: ToolReader | None) -> None:
        self._reader = reader
        self.has_calls = False

    def add(self, text: str, is_last: bool) -> tuple[str, list[ToolCall]]:
        """Returns the text and the calls that more text adds."""
        if self._reader is None:
            return text, []
        pieces = self._reader.push(text) + (self._reader.flush() if is_last else [])
        calls = [_tool_call(piece) for piece in pieces if isinstance(piece, CallPiece)]
        self.has_calls = self.has_calls or bool(calls)
        return "".join(piece for piece in pieces if isinstance(piece, str)), calls


def _tool_call(piece: CallPiece) -> ToolCall:
    return ToolCall(_CALL_ID, "function", CalledFunction(piece.name, piece.arguments), piece.call)


def joined(pieces: list[ToolCall]) -> list[ToolCall]:
    """Returns the pieces of each call put together; whole replies carry no index."""
    calls: dict[object, ToolCall] = {}
    for piece in pieces:
        begun = calls.get(piece.index)
        function = piece.function
        if begun is not None:
            function = CalledFunction(begun.function.name, begun.function.arguments + function.arguments)
        calls[piece.index] = ToolCall(_CALL_ID, "function", function)
    return list(calls.values())


def _logprobs(tokens: list[Token], top: list[list[Token]]) -> Logprobs:
    return Logprobs(
        [
            ContentLogprob(token.text, token.logprob, [TopLogprob(other.text, other.logprob) for other in others])
            for token, others in zip(tokens, top, strict=True)
        ]
    )

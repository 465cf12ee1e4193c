"""POST /v1/chat/completions: a conversation in, the assistant's next message out."""

from __future__ import annotations

from uuid import uuid4

import msgspec
from msgspec import UNSET
from starlette.responses import Response

from millpond.api.request import GrammarSpec, SamplingParams
from millpond.serve.generation import Generation
from millpond.serve.http.body import decode_body
from millpond.serve.http.choices import ChoiceOutput, collect
from millpond.serve.http.errors import invalid
from millpond.serve.http.openai.calls import Call, StreamUsage, stream_reply
from millpond.serve.http.openai.chat_fields import ChatBody
from millpond.serve.http.openai.chat_pieces import ChatOptions, ChatPieces, ChatWriter
from millpond.serve.http.openai.chat_prompt import chat_prompt, last_text, template_text
from millpond.serve.http.openai.fields import UNSUPPORTED
from millpond.serve.http.openai.logprobs import prompt_logprobs
from millpond.serve.http.openai.params import Constraint, constraint_of, sampling_params
from millpond.serve.http.openai.replies import ChatChoice, ChatChunk, ChatMessage, ChatReply, FunctionCall, ToolCall
from millpond.serve.http.openai.tools import tool_use


async def answer_chat(call: Call) -> Response:
    """Answers one call."""
    body = await decode_body(call.http, call.gateway, ChatBody, UNSUPPORTED)
    model = call.check_model(body.model)
    text = call.engine.text
    constraint = constraint_of(body)
    use = tool_use(body, template_text(text), constraint is not None)
    if use.grammar is not None:
        constraint = Constraint("tools", use.grammar)
    params = _params(body, None if constraint is None else constraint.grammar, call.engine.text.sampling)
    prompt = await call.prepare(lambda: chat_prompt(body, use, text), constraint, in_thread=True)
    options = ChatOptions(
        tokenizer=text.tokenizer,
        tools=use,
        role="assistant" if body.add_generation_prompt is not False else body.messages[-1].role,
        echo=last_text(body),
        num_top=params.logprobs,
        make_id=lambda: f"call_{uuid4().hex[:24]}",
    )
    id = call.public_id("chatcmpl", body.request_id)
    generation = await call.start([prompt], params, body, id)
    head = ChatHead(id, model, params.n)
    if body.stream:
        return _stream(call, body, options, generation, head)
    return await _whole(call, body, options, generation, head)


class ChatHead(msgspec.Struct, frozen=True):
    """What a reply and all chunks of a stream share."""

    id: str
    model: str
    n: int


def _params(body: ChatBody, grammar: GrammarSpec | None, defaults: SamplingParams) -> SamplingParams:
    if body.top_logprobs is not None and not body.logprobs:
        raise invalid("top_logprobs needs logprobs to be true.", param="top_logprobs")
    if body.prompt_logprobs is not None and body.stream:
        raise invalid("prompt_logprobs come with whole replies, not with streams.", param="prompt_logprobs")
    return sampling_params(
        body,
        defaults,
        n=body.n or 1,
        max_tokens=body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        prompt_logprobs=body.prompt_logprobs,
        grammar=grammar,
    )


def _stream(call: Call, body: ChatBody, options: ChatOptions, generation: Generation, head: ChatHead) -> Response:
    chunk = ChatChunk(
        head.id, "chat.completion.chunk", call.created, head.model, [], system_fingerprint=call.fingerprint
    )
    usage = StreamUsage(body.stream_options, generation)
    return stream_reply(call, generation, ChatWriter(options, head.n, chunk=chunk, usage=usage))


async def _whole(call: Call, body: ChatBody, options: ChatOptions, generation: Generation, head: ChatHead) -> Response:
    outputs = (await collect(call, generation, 1, head.n))[0]
    of_prompt = outputs[0].prompt_logprobs
    reply = ChatReply(
        id=head.id,
        object="chat.completion",
        created=call.created,
        model=head.model,
        choices=[_choice(options, index, output) for index, output in enumerate(outputs)],
        usage=StreamUsage(body.stream_options, generation).total(),
        system_fingerprint=call.fingerprint,
        prompt_logprobs=(
            UNSET
            if of_prompt is None or body.prompt_logprobs is None
            else prompt_logprobs(of_prompt, options.tokenizer)
        ),
    )
    return Response(msgspec.json.encode(reply), media_type="application/json")


def _choice(options: ChatOptions, index: int, output: ChoiceOutput) -> ChatChoice:
    pieces = ChatPieces(options)
    event = output.as_event(index)
    text, calls, finish_reason = pieces.add(event)
    calls = _joined(calls)
    return ChatChoice(
        index=index,
        message=ChatMessage(options.role, text or (None if calls else ""), tool_calls=calls or UNSET),
        logprobs=pieces.numbers(event),
        finish_reason=finish_reason,
        stop_reason=output.stop_reason,
    )


def _joined(pieces: list[ToolCall]) -> list[ToolCall]:
    """Puts the pieces of each call together; whole replies carry no index."""
    calls: list[ToolCall] = []
    for piece in pieces:
        if piece.id is not UNSET:
            calls.append(msgspec.structs.replace(piece, index=UNSET))
            continue
        function = calls[-1].function
        whole = FunctionCall(function.name, function.arguments + piece.function.arguments)
        calls[-1] = msgspec.structs.replace(calls[-1], function=whole)
    return calls

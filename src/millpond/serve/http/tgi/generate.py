"""POST /generate, /generate_stream and /: a text goes on, whole or token by token."""

from __future__ import annotations

import itertools

import msgspec
from msgspec import UNSET
from starlette.responses import Response

from millpond.inference.text import Tokenizer
from millpond.serve.http.body import decode_body
from millpond.serve.http.choices import ChoiceOutput
from millpond.serve.http.stream import Pour
from millpond.serve.http.tgi.checking import check_streaming
from millpond.serve.http.tgi.fields import CompatBody, GenerateBody, parameters_of
from millpond.serve.http.tgi.replies import BestOfSequence, Details, GenerateReply, StreamDetails, StreamReply, Token
from millpond.serve.http.tgi.server import TgiCall
from millpond.serve.http.tgi.streams import event, stream_answer
from millpond.serve.http.tgi.tokens import TokenTexts, prefill_tokens
from millpond.serve.http.tgi.work import (
    Job,
    Prompt,
    Told,
    best_output,
    compute_headers,
    last_reason,
    prepare,
    run_stream,
    run_whole,
    times,
)


async def answer_generate(call: TgiCall) -> Response:
    """Answers POST /generate."""
    body = await decode_body(call.http, call.server.gateway, GenerateBody, {}, call.server.settings.max_body_bytes)
    reply, headers = await generate(call, body)
    return Response(msgspec.json.encode(reply), headers=headers, media_type="application/json")


async def answer_generate_stream(call: TgiCall) -> Response:
    """Answers POST /generate_stream."""
    body = await decode_body(call.http, call.server.gateway, GenerateBody, {}, call.server.settings.max_body_bytes)
    return await generate_stream(call, body)


async def answer_compat(call: TgiCall) -> Response:
    """Answers POST /, which is both: a list with one answer, or a stream."""
    body = await decode_body(call.http, call.server.gateway, CompatBody, {}, call.server.settings.max_body_bytes)
    return await compat(call, body)


async def compat(call: TgiCall, body: CompatBody) -> Response:
    """Answers a body that says itself whether it wants a stream."""
    if body.stream:
        return await generate_stream(call, body)
    reply, headers = await generate(call, body)
    return Response(msgspec.json.encode([reply]), headers=headers, media_type="application/json")


async def generate(call: TgiCall, body: GenerateBody) -> tuple[GenerateReply, dict[str, str]]:
    """Runs a body to its end; returns the reply and its headers."""
    call.server.metrics.requests.add()
    asked = parameters_of(body)
    job = await prepare(call, Prompt(body.inputs, body.add_special_tokens), asked)
    outputs = (await run_whole(call, [job]))[0]
    best = outputs.index(best_output(outputs))
    tokenizer = call.engine.text.tokenizer
    add = body.inputs if asked.return_full_text else ""
    details = None
    if asked.details or asked.decoder_input_details:
        details = _details(job, outputs, best, add, tokenizer)
    reply = GenerateReply(add + "".join(outputs[best].text), UNSET if details is None else details)
    return reply, times(call, job, outputs[best])


async def generate_stream(call: TgiCall, body: GenerateBody) -> Response:
    """Answers with a stream of tokens."""
    call.server.metrics.requests.add()
    return await stream_answer(call, lambda: _begin(call, body), compute_headers(body.inputs))


async def _begin(call: TgiCall, body: GenerateBody) -> Pour:
    asked = parameters_of(body)
    check_streaming(asked)
    job = await prepare(call, Prompt(body.inputs, body.add_special_tokens), asked)
    places = itertools.count(1)

    def frame(_: int, item: Told) -> bytes:
        reply = StreamReply(next(places), item.token, item.top or UNSET)
        if item.finish_reason is not None:
            text = (body.inputs if asked.return_full_text else "") + item.text
            details = StreamDetails(item.finish_reason, item.num_tokens, job.choice.shown_seed(0), len(job.token_ids))
            reply = msgspec.structs.replace(reply, generated_text=text, details=details if asked.details else None)
        return event(msgspec.json.encode(reply))

    return await run_stream(call, [job], frame)


def _details(job: Job, outputs: list[ChoiceOutput], best: int, add: str, tokenizer: Tokenizer) -> Details:
    sequences = [_sequence(job, number, output, add, tokenizer) for number, output in enumerate(outputs)]
    chosen = sequences[best]
    others = [sequence for number, sequence in enumerate(sequences) if number != best]
    return Details(
        finish_reason=chosen.finish_reason,
        generated_tokens=chosen.generated_tokens,
        seed=chosen.seed,
        prefill=chosen.prefill,
        tokens=chosen.tokens,
        best_of_sequences=others if len(outputs) > 1 else UNSET,
        top_tokens=chosen.top_tokens,
    )


def _sequence(job: Job, number: int, output: ChoiceOutput, add: str, tokenizer: Tokenizer) -> BestOfSequence:
    tokens, top = token_lists(job, output, tokenizer)
    return BestOfSequence(
        generated_text=add + "".join(output.text),
        finish_reason=last_reason(output),
        generated_tokens=len(output.token_ids),
        seed=job.choice.shown_seed(number),
        prefill=prefill_tokens(job.token_ids, output.prompt_logprobs, tokenizer),
        tokens=tokens,
        top_tokens=top if job.num_top else UNSET,
    )


def token_lists(job: Job, output: ChoiceOutput, tokenizer: Tokenizer) -> tuple[list[Token], list[list[Token]]]:
    """Returns an output's tokens, and the likeliest ones at each place."""
    texts = TokenTexts(tokenizer)
    last = len(output.logprobs) - 1
    tokens = [texts.add(number, place == last) for place, number in enumerate(output.logprobs)]
    return tokens, [texts.top(number, job.num_top) for number in output.logprobs]

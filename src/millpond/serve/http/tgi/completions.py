"""POST /v1/completions in TGI's dialect: one or a few texts go on, each a choice."""

from __future__ import annotations

import msgspec
from starlette.responses import Response

from millpond.serve.http.body import decode_body
from millpond.serve.http.stream import Pour
from millpond.serve.http.tgi.chat import fingerprint, openai_reason, public_id, usage_of
from millpond.serve.http.tgi.chat_fields import CompletionBody
from millpond.serve.http.tgi.chat_replies import CompletionChoice, CompletionReply, Usage
from millpond.serve.http.tgi.chat_request import check_model, shared_parameters
from millpond.serve.http.tgi.errors import TgiError
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


async def answer_completion(call: TgiCall) -> Response:
    """Answers one call."""
    server = call.server
    body = await decode_body(call.http, server.gateway, CompletionBody, {}, server.settings.max_body_bytes)
    return await complete(call, body)


async def complete(call: TgiCall, body: CompletionBody) -> Response:
    """Answers a body."""
    call.server.metrics.requests.add()
    prompts = _prompts(call, body)  # TGI refuses these with their own status, streams too
    if body.stream:
        return await stream_answer(
            call, lambda: _begin(call, body, prompts), compute_headers("".join(prompts)), is_openai=True
        )
    jobs = await _prepare(call, body, prompts)
    outputs = [choices[0] for choices in await run_whole(call, jobs)]
    is_strict = call.server.settings.is_strict
    choices = [
        CompletionChoice(index, "".join(output.text), None, openai_reason(last_reason(output), is_strict))
        for index, output in enumerate(outputs)
    ]
    used = [usage_of(job, len(output.token_ids)) for job, output in zip(jobs, outputs, strict=True)]
    reply = msgspec.structs.replace(_empty(call, body), choices=choices, usage=_sum(used))
    headers = times(call, jobs[0], outputs[0]) | {
        "x-compute-characters": str(sum(len(job.inputs) for job in jobs)),
        "x-prompt-tokens": str(sum(usage.prompt_tokens for usage in used)),
        "x-generated-tokens": str(sum(usage.completion_tokens for usage in used)),
    }
    return Response(msgspec.json.encode(reply), headers=headers, media_type="application/json")


def _prompts(call: TgiCall, body: CompletionBody) -> list[str]:
    check_model(call, body.model)
    if body.suffix is not None:
        raise TgiError(
            "suffix not supported",
            "Suffix is not supported and can be achieved by preprocessing the prompt.",
            status=422,
        )
    prompts = [body.prompt] if isinstance(body.prompt, str) else body.prompt
    most = call.server.settings.max_client_batch_size
    if len(prompts) > most:
        raise TgiError(
            "batch size exceeded", f"Number of prompts exceeds the maximum allowed batch size of {most}", status=422
        )
    if not prompts:
        raise TgiError("validation", "Input validation error: `prompt` cannot be empty")
    return prompts


async def _prepare(call: TgiCall, body: CompletionBody, prompts: list[str]) -> list[Job]:
    asked = msgspec.structs.replace(
        shared_parameters(body, call.server.settings), repetition_penalty=body.repetition_penalty
    )
    return [await prepare(call, Prompt(prompt), asked, number) for number, prompt in enumerate(prompts)]


async def _begin(call: TgiCall, body: CompletionBody, prompts: list[str]) -> Pour:
    jobs = await _prepare(call, body, prompts)
    empty = _empty(call, body)
    is_strict = call.server.settings.is_strict

    def frame(index: int, item: Told) -> bytes:
        text = "" if item.token.special else item.token.text
        reason: str | None = None if is_strict else ""
        if item.finish_reason is not None:  # TGI's streams say eos_token where its whole answers say stop
            reason = openai_reason(item.finish_reason, True) if is_strict else item.finish_reason
        chunk = msgspec.structs.replace(empty, choices=[CompletionChoice(index, text, None, reason)])
        if item.finish_reason is not None:
            chunk = msgspec.structs.replace(chunk, usage=usage_of(jobs[index], item.num_tokens))
        return event(msgspec.json.encode(chunk))

    return await run_stream(call, jobs, frame)


def _empty(call: TgiCall, body: CompletionBody) -> CompletionReply:
    model = check_model(call, body.model)
    return CompletionReply("text_completion", public_id(call, "cmpl"), call.created, model, fingerprint(call), [])


def _sum(used: list[Usage]) -> Usage:
    prompt, output = sum(usage.prompt_tokens for usage in used), sum(usage.completion_tokens for usage in used)
    return Usage(prompt, output, prompt + output)

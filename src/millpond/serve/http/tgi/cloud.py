"""POST /invocations (SageMaker) and /vertex: the other bodies of this port in the clouds' envelopes."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Raw
from starlette.responses import Response

from millpond.serve.http.body import decode_body, decode_json
from millpond.serve.http.tgi.chat import chat, prepare_chat
from millpond.serve.http.tgi.chat_fields import ChatBody, CompletionBody
from millpond.serve.http.tgi.completions import complete
from millpond.serve.http.tgi.errors import TgiError, validation
from millpond.serve.http.tgi.fields import CompatBody, Parameters, VertexInstance
from millpond.serve.http.tgi.generate import compat
from millpond.serve.http.tgi.replies import VertexReply
from millpond.serve.http.tgi.server import TgiCall
from millpond.serve.http.tgi.work import Job, Prompt, best_output, prepare, run_whole


class VertexBody(msgspec.Struct, frozen=True):
    """The body of /vertex: prompts, or conversations."""

    instances: list[Raw]


class _Kind(msgspec.Struct, frozen=True):
    """As much of a body as tells which one it is."""

    inputs: Any = None
    messages: Any = None
    prompt: Any = None


async def answer_invocations(call: TgiCall) -> Response:
    """Answers POST /invocations: a body of /, of /v1/chat/completions or of /v1/completions."""
    server = call.server
    raw = bytes(await decode_body(call.http, server.gateway, Raw, {}, server.settings.max_body_bytes))
    kind = decode_json(raw, _Kind, {})
    if kind.inputs is None and kind.messages is not None:
        return await chat(call, decode_json(raw, ChatBody, {}))
    if kind.inputs is None and kind.prompt is not None:
        return await complete(call, decode_json(raw, CompletionBody, {}))
    return await compat(call, decode_json(raw, CompatBody, {}))


async def answer_vertex(call: TgiCall) -> Response:
    """Answers POST /vertex."""
    server = call.server
    body = await decode_body(call.http, server.gateway, VertexBody, {}, server.settings.max_body_bytes)
    server.metrics.requests.add()
    if not body.instances:
        raise TgiError("Input validation error", "Input validation error", status=422)
    most = server.settings.max_concurrent_requests
    if len(body.instances) > most:
        raise validation(f"`instances` supports up to {most} instances. Given: {len(body.instances)}")
    jobs = [await _job(call, bytes(raw), number) for number, raw in enumerate(body.instances)]
    outputs = await run_whole(call, jobs)
    predictions = ["".join(best_output(sequences).text) for sequences in outputs]
    return Response(msgspec.json.encode(VertexReply(predictions)), media_type="application/json")


async def _job(call: TgiCall, raw: bytes, number: int) -> Job:
    kind = decode_json(raw, _Kind, {})
    if kind.inputs is None and kind.messages is not None:
        job, _, _ = await prepare_chat(call, decode_json(raw, ChatBody, {}), number)
        return job
    instance = decode_json(raw, VertexInstance, {})
    given = instance.parameters or Parameters()
    asked = given if call.server.settings.is_strict else msgspec.structs.replace(given, do_sample=True)
    return await prepare(call, Prompt(instance.inputs), asked, number)

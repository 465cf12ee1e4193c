"""POST /v1/completions: text or tokens in, a continuation out.

Owns the endpoint's fields. `prompt` may be a text, tokens, or a list of either; choice `p * n + k` is choice k of
prompt p. With `echo` the prompt comes first, with its log-probabilities where they were asked for, which is how
evaluation harnesses score text (`max_tokens` 0 or 1).
"""

from __future__ import annotations

from typing import Annotated, cast

import msgspec
from msgspec import Meta
from starlette.responses import Response

from millpond.api.request import SamplingParams
from millpond.inference.text import Tokenizer
from millpond.serve.http.body import decode_body
from millpond.serve.http.choices import ChoiceOutput, collect
from millpond.serve.http.errors import invalid
from millpond.serve.http.openai.calls import Call, StreamUsage, stream_reply
from millpond.serve.http.openai.completion_pieces import ChoicePieces, CompletionWriter, PieceOptions, Prompt
from millpond.serve.http.openai.fields import UNSUPPORTED, GenerationFields, TokenId
from millpond.serve.http.openai.params import Constraint, constraint_of, sampling_params
from millpond.serve.http.openai.replies import CompletionChoice, CompletionReply

MAX_PROMPTS = 256
_DEFAULT_MAX_TOKENS = 16
_LARGE_TEXT = 2048  # characters; tokenising more holds the event loop up for longer than a millisecond


class CompletionBody(GenerationFields, frozen=True, kw_only=True):
    """The body of POST /v1/completions."""

    prompt: Annotated[
        str | list[str | TokenId | list[TokenId]],
        Meta(description="A text, a list of texts, a list of token ids, or a list of lists of token ids."),
    ]
    echo: bool | None = None
    logprobs: Annotated[int, Meta(ge=0, le=5)] | None = None
    best_of: Annotated[int, Meta(ge=1, le=128)] | None = None


async def answer_completion(call: Call) -> Response:
    """Answers one call."""
    body = await decode_body(call.http, call.gateway, CompletionBody, UNSUPPORTED)
    model = call.check_model(body.model)
    constraint = constraint_of(body)
    params = _params(body, constraint, call.engine.text.sampling)
    options = PieceOptions(
        tokenizer=call.engine.text.tokenizer,
        echo=bool(body.echo),
        logprobs=body.logprobs,
        prompt_logprobs=body.prompt_logprobs is not None,
        has_output=body.max_tokens != 0,
    )
    prompts = await _tokenise(call, body, constraint)
    id = call.public_id("cmpl", body.request_id)
    generation = await call.start([prompt.token_ids for prompt in prompts], params, body, id)
    reply = CompletionReply(id, "text_completion", call.created, model, choices=[], system_fingerprint=call.fingerprint)
    usage = StreamUsage(body.stream_options, generation, counts_output=options.has_output)
    if body.stream:
        writer = CompletionWriter(options, prompts, params.n, reply=reply, usage=usage)
        return stream_reply(call, generation, writer)
    outputs = await collect(call, generation, len(prompts), params.n)
    n = body.n or 1
    choices = [
        _whole(options, prompts[p], p * n + k, output, ranked[0])
        for p, ranked in enumerate(outputs)
        for k, output in enumerate(_best(ranked, n))
    ]
    reply = msgspec.structs.replace(reply, choices=choices, usage=usage.total())
    return Response(msgspec.json.encode(reply), media_type="application/json")


def prompt_list(prompt: str | list[str | int | list[int]]) -> list[str] | list[list[int]]:
    """Returns the prompts in a `prompt` field, whichever of its four forms it has.

    Raises:
        ApiError: It is empty, mixes the forms, or there are too many.
    """
    if isinstance(prompt, str):
        return [prompt]
    kinds = {type(item) for item in prompt}
    if kinds == {int}:
        return [cast(list[int], prompt)]
    if len(prompt) > MAX_PROMPTS:
        raise invalid(f"There are {len(prompt)} prompts; a call may bring {MAX_PROMPTS}.", param="prompt")
    if kinds == {str} or (kinds == {list} and all(prompt)):
        return cast(list[str], prompt)
    raise invalid(
        "prompt is a text, token ids, a list of texts or a list of lists of token ids, and is not empty.",
        param="prompt",
    )


def _params(body: CompletionBody, constraint: Constraint | None, defaults: SamplingParams) -> SamplingParams:
    n = body.n or 1
    best_of = body.best_of or n
    if best_of < n:
        raise invalid(f"best_of is {best_of}, less than n, which is {n}.", param="best_of")
    if best_of > n and body.stream:
        raise invalid("best_of cannot be streamed: the best is known at the end.", param="best_of")
    of_prompt = body.prompt_logprobs
    if body.echo and body.logprobs is not None:
        of_prompt = max(body.logprobs, of_prompt or 0)
    return sampling_params(
        body,
        defaults,
        n=best_of,
        # The engine samples at least one token; with max_tokens 0 it is dropped again.
        max_tokens=_DEFAULT_MAX_TOKENS if body.max_tokens is None else max(1, body.max_tokens),
        logprobs=0 if best_of > n and body.logprobs is None else body.logprobs,  # the ranking needs them
        prompt_logprobs=of_prompt,
        grammar=None if constraint is None else constraint.grammar,
    )


async def _tokenise(call: Call, body: CompletionBody, constraint: Constraint | None) -> list[Prompt]:
    tokenizer = call.engine.text.tokenizer
    prompts = prompt_list(body.prompt)
    add_special_tokens = body.add_special_tokens is not False

    def work() -> list[Prompt]:
        return [_prompt(prompt, tokenizer, add_special_tokens) for prompt in prompts]

    is_large = sum(len(prompt) for prompt in prompts) > _LARGE_TEXT
    return await call.prepare(work, constraint, in_thread=is_large)


def _prompt(prompt: str | list[int], tokenizer: Tokenizer, add_special_tokens: bool) -> Prompt:
    if isinstance(prompt, str):
        return Prompt(tokenizer.encode(prompt, add_special_tokens), prompt)
    return Prompt(prompt, tokenizer.decode(prompt, skip_special_tokens=False))


def _best(outputs: list[ChoiceOutput], n: int) -> list[ChoiceOutput]:
    if len(outputs) == n:
        return outputs
    return sorted(outputs, key=_mean_logprob, reverse=True)[:n]


def _mean_logprob(output: ChoiceOutput) -> float:
    return sum(token.logprob for token in output.logprobs) / max(1, len(output.logprobs))


def _whole(
    options: PieceOptions, prompt: Prompt, index: int, output: ChoiceOutput, first: ChoiceOutput
) -> CompletionChoice:
    choice = ChoicePieces(options, prompt, index).add(output.as_event(index), first.prompt_logprobs)
    assert choice is not None, "the last event of a choice has a finish reason"
    return choice

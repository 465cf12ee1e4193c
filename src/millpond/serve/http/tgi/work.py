"""The work of one prompt, which every route of the port comes down to: /generate, chat, completions, SageMaker, Vertex.

`prepare` makes of a text and parameters what the engine runs, `run_whole` and `run_stream` run it. As in TGI the
dialects of OpenAI are translations into this and back. Knows no bodies and no replies but tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import cast

import msgspec

from millpond.api.request import GrammarSpec, OutputEvent, Request, SamplingParams
from millpond.base.errors import RequestError
from millpond.serve.generation import Generation, Outlet
from millpond.serve.http.choices import ChoiceOutput, collect
from millpond.serve.http.stream import Pour, settled
from millpond.serve.http.tgi.checking import (
    Choice,
    bad_grammar,
    check_lengths,
    check_truncate,
    engine_seed,
    make_choice,
)
from millpond.serve.http.tgi.errors import TgiError, validation
from millpond.serve.http.tgi.fields import Parameters
from millpond.serve.http.tgi.replies import FinishReason, Token
from millpond.serve.http.tgi.server import TgiCall
from millpond.serve.http.tgi.tokens import TokenTexts

_LARGE_TEXT = 2048  # characters; tokenising more holds the event loop up for longer than a millisecond


@dataclass(frozen=True, slots=True)
class Job:
    """One prompt, checked and tokenised.

    Attributes:
        inputs: The prompt's text.
        requests: One for each of best_of sequences.
        num_top: Alternatives a token that are shown.
        validated_s: What checking took.
    """

    inputs: str
    token_ids: list[int]
    choice: Choice
    requests: list[Request]
    num_top: int
    max_new_tokens: int
    validated_s: float


class Told(msgspec.Struct):  # quicker to make than a dataclass, and there is one a token
    """One token of a stream, and the end's facts with the last one."""

    token: Token
    top: list[Token]
    finish_reason: FinishReason | None = None
    text: str = ""
    num_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Prompt:
    """A text and what it is called in messages.

    Attributes:
        grammar: A constraint that stands beside the parameters.
    """

    inputs: str
    add_special_tokens: bool = True
    grammar: GrammarSpec | None = None


async def prepare(call: TgiCall, prompt: Prompt, asked: Parameters, number: int = 0) -> Job:
    """Checks and tokenises a prompt.

    Args:
        call: The call it belongs to.
        prompt: The text.
        asked: How to go on with it.
        number: Its place among the call's prompts.

    Raises:
        TgiError: It can never be done.
    """
    started_s = perf_counter()
    server, limits = call.server, call.limits
    choice = make_choice(asked, server.settings)
    if prompt.grammar is not None:
        choice = Choice(msgspec.structs.replace(choice.params, grammar=prompt.grammar), choice.seeds, choice.is_sampled)
    if not prompt.inputs:
        raise validation("`inputs` cannot be empty")
    check_truncate(asked, limits)
    token_ids = await _tokenise(call, prompt, choice.params.grammar)
    if asked.truncate is not None:
        token_ids = token_ids[-asked.truncate :]
    wanted = check_lengths(len(token_ids), asked.max_new_tokens, limits)
    requests = [
        _request(
            call,
            f"{number}-{index}",
            token_ids,
            msgspec.structs.replace(
                choice.params, seed=engine_seed(seed) if choice.is_sampled else None, max_tokens=wanted
            ),
        )
        for index, seed in enumerate(choice.seeds)
    ]
    metrics = server.metrics
    metrics.input_length.observe(len(token_ids))
    metrics.max_new_tokens.observe(wanted)
    validated_s = perf_counter() - started_s
    metrics.validation.observe(validated_s)
    return Job(prompt.inputs, token_ids, choice, requests, asked.top_n_tokens or 0, wanted, validated_s)


async def run_whole(call: TgiCall, jobs: list[Job]) -> list[list[ChoiceOutput]]:
    """Runs jobs to their ends and returns, for each, the output of each of its sequences.

    Raises:
        TgiError: There is no place for them.
        ClientGone: Nobody waits any more.
    """
    requests = [request for job in jobs for request in job.requests]
    generation = _start(call, requests)
    outputs = [choices[0] for choices in await collect(call, generation, len(requests), 1)]
    seconds = perf_counter() - call.arrived_s
    call.server.is_healthy = True
    found: list[list[ChoiceOutput]] = []
    for job in jobs:
        found.append(outputs[: len(job.requests)])
        outputs = outputs[len(job.requests) :]
        _count(call, job, seconds, len(found[-1][0].token_ids), found[-1][0].queue_s)
    return found


async def run_stream(call: TgiCall, jobs: list[Job], frame: Callable[[int, Told], bytes]) -> Pour:
    """Begins jobs of one sequence each and returns what writes their stream.

    In the strict form the first token is waited for, for some seconds: what goes wrong before it is raised here.

    Args:
        call: The call they belong to.
        jobs: What to run.
        frame: Makes the frames of a token of the job with that number.

    Raises:
        TgiError: There is no place for them, or in the strict form what went wrong before the first token.
        ClientGone: Nobody waits any more.
    """
    generation = _start(call, [job.requests[0] for job in jobs])
    events = generation.events()
    call.stack.push_async_callback(events.aclose)
    readers = [_StreamReader(call, job) for job in jobs]

    def frames(number: int, event: OutputEvent) -> bytes:
        told = readers[number].take(event)
        return frame(number, told[0]) if len(told) == 1 else b"".join([frame(number, one) for one in told])

    async def begin() -> bytes:
        while True:
            data = frames(*await anext(events))
            if data:
                return data

    first = asyncio.ensure_future(begin())
    call.stack.push_async_callback(_cancel, first)
    if call.server.settings.is_strict:
        await settled(call.http.receive, first, call.server.gateway.settings.first_event_s)
        if first.done():
            first.result()

    async def pour(outlet: Outlet) -> None:
        def write(number: int, event: OutputEvent) -> None:
            data = frames(number, event)
            if data:
                outlet.write(data)

        outlet.write(await first)
        await outlet.drained()
        await generation.pour(events, write, outlet)
        call.server.is_healthy = True

    return pour


async def _cancel(task: asyncio.Future[bytes]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def finish_reason(reason: str | None, stop_reason: str | int | None) -> FinishReason:
    """Returns TGI's word for why a sequence ended."""
    if reason == "length":
        return "length"
    return "stop_sequence" if isinstance(stop_reason, str) else "eos_token"


async def _tokenise(call: TgiCall, prompt: Prompt, grammar: GrammarSpec | None) -> list[int]:
    gateway = call.server.gateway
    tokenizer = call.engine.text.tokenizer
    grammars = gateway.grammars(call.engine)

    def work() -> list[int]:
        if grammar is not None:
            try:
                grammars.check(grammar)
            except RequestError as error:
                raise bad_grammar(str(error)) from error
        return tokenizer.encode(prompt.inputs, prompt.add_special_tokens)

    if grammar is not None or len(prompt.inputs) > _LARGE_TEXT:
        return await gateway.in_thread(work)
    return await gateway.in_turn(work)


def _request(call: TgiCall, suffix: str, token_ids: list[int], params: SamplingParams) -> Request:
    return Request(
        request_id=f"tgi-{call.http.state.request_id}-{suffix}",
        prompt_token_ids=token_ids,
        params=params,
        deadline_s=call.server.gateway.settings.request_timeout_s,
    )


def _start(call: TgiCall, requests: list[Request]) -> Generation:
    server = call.server
    call.stack.enter_context(server.places(len(requests)))
    server.metrics.next_size.observe(len(requests))
    generation = Generation(call.engine, server.gateway.metrics, requests, call.arrived_s)
    call.stack.push_async_callback(generation.aclose)
    generation.begin()
    return generation


class _StreamReader:
    """Cuts one sequence's events into tokens."""

    def __init__(self, call: TgiCall, job: Job) -> None:
        self._call = call
        self._job = job
        self._metrics = call.server.metrics
        self._texts = TokenTexts(call.engine.text.tokenizer)
        self._text: list[str] = []
        self._num_tokens = 0
        self._queue_s = 0.0
        self._last_s = perf_counter()

    def take(self, event: OutputEvent) -> list[Told]:
        """Returns the tokens of an event."""
        self._text.append(event.text)
        self._queue_s = event.queue_s or self._queue_s
        self._time(len(event.token_ids))
        numbers = event.logprobs or []
        told = []
        for place, number in enumerate(numbers, 1):
            is_last = event.finish_reason is not None and place == len(numbers)
            self._num_tokens += 1
            token = self._texts.add(number, is_last)
            top = self._texts.top(number, self._job.num_top) if self._job.num_top else []
            told.append(self._end(token, top, event) if is_last else Told(token, top))
        if event.finish_reason is not None and not numbers:
            raise TgiError("incomplete_generation", "Incomplete generation")
        return told

    def _end(self, token: Token, top: list[Token], event: OutputEvent) -> Told:
        call = self._call
        _count(call, self._job, perf_counter() - call.arrived_s, self._num_tokens, self._queue_s)
        reason = finish_reason(event.finish_reason, event.stop_reason)
        return Told(token, top, reason, "".join(self._text), self._num_tokens)

    def _time(self, count: int) -> None:
        now_s = perf_counter()
        if count:
            method = "decode" if self._num_tokens else "prefill"
            self._metrics.observe_step(method, (now_s - self._last_s) / count)
        self._last_s = now_s


def _count(call: TgiCall, job: Job, seconds: float, num_tokens: int, queue_s: float) -> None:
    metrics = call.server.metrics
    inference_s = max(0.0, seconds - job.validated_s - queue_s)
    metrics.successes.add()
    metrics.duration.observe(seconds)
    metrics.queue.observe(queue_s)
    metrics.inference.observe(inference_s)
    metrics.per_token.observe(inference_s / max(1, num_tokens))
    metrics.generated.observe(num_tokens)


def times(call: TgiCall, job: Job, output: ChoiceOutput) -> dict[str, str]:
    """Returns the headers that say how long an answer took."""
    seconds = perf_counter() - call.arrived_s
    inference_s = max(0.0, seconds - job.validated_s - output.queue_s)
    num_tokens = len(output.token_ids)
    milliseconds = {
        "x-total-time": seconds,
        "x-validation-time": job.validated_s,
        "x-queue-time": output.queue_s,
        "x-inference-time": inference_s,
        "x-time-per-token": inference_s / max(1, num_tokens),
    }
    return {
        **compute_headers(job.inputs),
        "x-compute-time": str(seconds),
        **{name: str(int(1000 * value)) for name, value in milliseconds.items()},
        "x-prompt-tokens": str(len(job.token_ids)),
        "x-generated-tokens": str(num_tokens),
    }


def compute_headers(inputs: str) -> dict[str, str]:
    """Returns the headers of whole answers and streams alike."""
    return {"x-compute-type": "cpu+optimized", "x-compute-characters": str(len(inputs))}


def best_output(outputs: list[ChoiceOutput]) -> ChoiceOutput:
    """Returns the output with the highest log-probability a token, which is how TGI chooses."""
    return max(outputs, key=lambda output: sum(n.logprob for n in output.logprobs) / max(1, len(output.logprobs)))


def last_reason(output: ChoiceOutput) -> FinishReason:
    """Returns why a whole output ended."""
    return finish_reason(cast(str, output.finish_reason), output.stop_reason)

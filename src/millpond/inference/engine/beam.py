"""Beam search as a state machine: candidates in, the next beams out. Exact after transformers' definition.

`BeamSearch` knows neither engine nor model. Its drivers ask for one token's log-probabilities per beam with ordinary
requests: `LLM` in process, `stream_beams` over the client. The prefix cache makes asking again for a beam that is one
token longer cheap, and lets all beams share the prompt. No torch.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass

import msgspec

from millpond.api.request import ErrorInfo, FinishReason, OutputEvent, Request, SamplingParams, TokenLogprob
from millpond.base.errors import DeadlineError, MillpondError
from millpond.inference.engine.stream import OutputStream
from millpond.inference.text import Tokenizer


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """A continuation and how likely it is. `score` is `logprob` divided by length ** length_penalty."""

    token_ids: tuple[int, ...] = ()
    logprob: float = 0.0
    score: float = 0.0
    finish_reason: FinishReason = "length"
    token_logprobs: tuple[TokenLogprob, ...] = ()

    def extended(self, candidate: TokenLogprob, length_penalty: float, finish_reason: FinishReason) -> Hypothesis:
        """Returns this continuation one token longer."""
        logprob = self.logprob + candidate.logprob
        return Hypothesis(
            (*self.token_ids, candidate.token_id),
            logprob,
            logprob / (len(self.token_ids) + 1) ** length_penalty,
            finish_reason,
            (*self.token_logprobs, candidate),
        )


class BeamSearch:
    """One search.

    Args:
        params: beam_width, max_tokens, length_penalty, early_stopping, ignore_eos, stop_token_ids and logprobs count.
        eos_token_ids: What ends a beam, unless the parameters ignore it.
    """

    def __init__(self, params: SamplingParams, eos_token_ids: Iterable[int]) -> None:
        assert params.max_tokens is not None, "admission fills max_tokens in"
        self._params = params
        self._max_tokens = params.max_tokens
        eos = frozenset() if params.ignore_eos else frozenset(eos_token_ids)
        self._stops = eos | frozenset(params.stop_token_ids)
        self._finished: list[Hypothesis] = []  # best first, at most beam_width
        self.beams = [Hypothesis()]
        self.is_done = False

    @property
    def num_candidates(self) -> int:
        """How many of each beam's likeliest tokens are needed: enough for beam_width that do not end theirs."""
        return max(2, 1 + len(self._stops)) * self._params.beam_width

    def token_request(self, request: Request, beam: Hypothesis) -> Request:
        """Returns the request for the candidates that continue a beam of `request`."""
        params = SamplingParams(temperature=0.0, max_tokens=1, logprobs=self.num_candidates, ignore_eos=True)
        return msgspec.structs.replace(
            request,
            prompt_token_ids=[*request.prompt_token_ids, *beam.token_ids],
            params=params,
        )

    def advance(self, candidates: Sequence[TokenLogprob]) -> None:
        """Takes the answer for every beam, in the order of `beams`; its `top` has `num_candidates` entries."""
        width, penalty = self._params.beam_width, self._params.length_penalty
        is_last = len(self.beams[0].token_ids) + 1 >= self._max_tokens
        options = sorted(
            ((beam.logprob + logprob, b, rank) for b, beam in enumerate(self.beams)
             for rank, (_, logprob) in enumerate(candidates[b].top)),
            key=lambda option: (-option[0], option[1], option[2]),
        )  # fmt: skip
        running: list[Hypothesis] = []
        ended: list[Hypothesis] = []
        for place, (_, b, rank) in enumerate(options[: self.num_candidates]):
            answer = candidates[b]
            token_id, logprob = answer.top[rank]
            is_stop = token_id in self._stops
            ends = is_stop or is_last
            if len(running) == width or (ends and place >= width):  # past the first places are spares for running ones
                continue
            token = TokenLogprob(token_id, logprob, rank + 1, answer.top[: self._params.logprobs or 0])
            beam = self.beams[b].extended(token, penalty, "stop" if is_stop else "length")
            (ended if ends else running).append(beam)
        self._finished = sorted([*self._finished, *ended], key=lambda finished: -finished.score)[:width]
        self.beams = running
        self.is_done = not self.beams or self._cannot_improve()

    def best(self, count: int) -> list[Hypothesis]:
        """The best finished continuations, best first."""
        return self._finished[:count]

    def _cannot_improve(self) -> bool:
        if len(self._finished) < self._params.beam_width:
            return False
        if self._params.early_stopping:
            return True
        # As transformers: the best running beam, were it to end now. Longer ones could still win with a penalty > 0.
        return self.beams[0].score <= self._finished[-1].score


def beam_event(request: Request, index: int, hypothesis: Hypothesis, tokenizer: Tokenizer) -> OutputEvent:
    """Returns the one event that tells a finished continuation."""
    params, token_ids = request.params, list(hypothesis.token_ids)
    is_stopped = hypothesis.finish_reason == "stop"
    shown = token_ids[:-1] if is_stopped and not params.include_stop_str_in_output else token_ids
    return OutputEvent(
        request_id=request.request_id,
        index=index,
        text=tokenizer.decode(shown, skip_special_tokens=params.skip_special_tokens),
        token_ids=token_ids,
        logprobs=None if params.logprobs is None else list(hypothesis.token_logprobs),
        finish_reason=hypothesis.finish_reason,
        stop_reason=token_ids[-1] if is_stopped and token_ids[-1] in params.stop_token_ids else None,
    )


def beam_failures(request: Request, reason: FinishReason, error: ErrorInfo | None) -> list[OutputEvent]:
    """Returns the events that end all of a request's choices in one way."""
    return [
        OutputEvent(request.request_id, index, "", [], finish_reason=reason, error=error)
        for index in range(request.params.n)
    ]


async def stream_beams(
    generate: Callable[[Request], OutputStream], request: Request, eos_token_ids: Iterable[int], tokenizer: Tokenizer
) -> AsyncGenerator[OutputEvent, None]:
    """Runs a beam search over a client; yields one event for each of the request's n best continuations."""
    search = BeamSearch(request.params, eos_token_ids)
    began_s = time.monotonic()
    while not search.is_done:
        asked = request
        if request.deadline_s is not None:
            left_s = request.deadline_s - (time.monotonic() - began_s)
            if left_s <= 0:
                error = ErrorInfo(DeadlineError.code, "The request's deadline passed before it finished.")
                for event in beam_failures(request, "deadline", error):
                    yield event
                return
            asked = msgspec.structs.replace(request, deadline_s=left_s)
        streams: list[OutputStream] = []
        try:
            for beam in search.beams:
                streams.append(generate(search.token_request(asked, beam)))
            answers = await asyncio.gather(*(_one_token(stream) for stream in streams))
        finally:
            for stream in streams:
                await stream.aclose()
        broken = next((answer for answer in answers if answer.error is not None), None)
        if broken is not None and broken.error is not None:
            for event in beam_failures(request, broken.finish_reason or "error", broken.error):
                yield event
            return
        search.advance([answer.logprobs[0] for answer in answers if answer.logprobs])
    for index, hypothesis in enumerate(search.best(request.params.n)):
        yield beam_event(request, index, hypothesis, tokenizer)


async def _one_token(stream: OutputStream) -> OutputEvent:
    async for event in stream:
        if event.finish_reason is not None:
            return event
    raise MillpondError("a beam's request ended without an answer")

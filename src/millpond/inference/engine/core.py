"""The engine's heart: schedule, execute, sample, tell. Grows no features.

What runs is the scheduler's business, how it runs the executor's, which token comes next the sampler's. Used by the
engine process and, in process, by `LLM`. One thread calls it; it knows no sockets and no text.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from millpond.api.request import EngineStats, ErrorInfo, FinishReason, Request, TokenLogprob
from millpond.base.errors import DeadlineError, MillpondError
from millpond.config.resolved import ResolvedConfig
from millpond.inference.engine.inputs import InputBuilder, PromptRows
from millpond.inference.engine.messages import SequenceOutput
from millpond.inference.engine.speculator import NoSpeculator, Speculator
from millpond.inference.sampling.sampler import SampledToken, Sampler
from millpond.inference.sched.scheduler import Scheduler
from millpond.inference.sched.state import Sequence
from millpond.inference.sched.step import StepPlan

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from millpond.inference.engine.executor import Executor


class StepFailedError(Exception):
    """A step raised (`__cause__`). Its sequences have ended and hold nothing any more; the engine can go on.

    Attributes:
        outputs: What to tell the requests.
    """

    def __init__(self, outputs: list[SequenceOutput]) -> None:
        super().__init__("a step failed")
        self.outputs = outputs


@dataclass(slots=True)
class _Live:
    """What is kept of a sequence beside the scheduler's own state."""

    seq: Sequence
    num_prompt_logprobs: int | None
    prompt_logprobs: list[TokenLogprob | None]  # the first token has none
    is_told: bool = False  # something was sent


class EngineCore:
    """One engine.

    Args:
        config: The limits the executor and the scheduler were built with.
        executor: Computes logits.
        sampler: Chooses tokens.
        scheduler: Decides what each step computes.
        eos_token_ids: The tokens that end a sequence.
        speculator: Guesses tokens ahead; None never does.
        clock: Seconds; for arrival, deadlines and the step counters.
    """

    def __init__(
        self,
        config: ResolvedConfig,
        executor: Executor,
        sampler: Sampler,
        scheduler: Scheduler,
        *,
        eos_token_ids: Iterable[int] = (),
        speculator: Speculator | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.scheduler = scheduler
        self._executor = executor
        self._sampler = sampler
        self._eos_token_ids = frozenset(eos_token_ids)
        self._speculator: Speculator = speculator or NoSpeculator()
        self._clock = clock
        self._builder = InputBuilder(
            max_batch_tokens=config.max_batch_tokens,
            max_sequences=config.max_sequences,
            max_model_len=config.max_model_len,
            block_size=config.block_size,
        )
        self._seq_ids = itertools.count()
        self._live: dict[int, _Live] = {}
        self._seq_ids_of: dict[str, list[int]] = {}
        self._step_seconds = 0.0
        self._kernel_seconds = 0.0

    @property
    def has_work(self) -> bool:
        """True when a step would do something."""
        return self.scheduler.has_work

    def add(self, request: Request) -> None:
        """Takes a request that `check_request` passed; its sequences enter the queue together or not at all.

        Raises:
            QueueFullError: Too many sequences wait.
            RequestError: The grammar cannot be compiled.
        """
        sequences = [self._make_sequence(request, index) for index in range(request.params.n)]
        self.scheduler.add_group(sequences)
        self._seq_ids_of[request.request_id] = [seq.seq_id for seq in sequences]
        for seq in sequences:
            count = request.params.prompt_logprobs if seq.needs_prompt_logits else None
            self._live[seq.seq_id] = _Live(seq, count, [None])
        try:
            for seq in sequences:
                self._sampler.add(seq.seq_id, request.params, request.prompt_token_ids, self._eos_token_ids, seq.index)
        except BaseException:
            self.cancel(request.request_id)
            raise

    def cancel(self, request_id: str, index: int | None = None) -> None:
        """Ends a request, or one of its sequences, wherever it is, and frees its blocks. Unknown ones are over."""
        for seq_id in list(self._seq_ids_of.get(request_id, ())):
            seq = self._live[seq_id].seq
            if index is None or seq.index == index:
                self.scheduler.cancel(seq_id)
                self._release(seq)

    def step(self) -> list[SequenceOutput]:
        """Runs one step and returns what every sequence in it got.

        Raises:
            StepFailedError: The executor or the sampler raised.
        """
        begin = self._clock()
        self._speculator.propose(self.scheduler)
        plan = self.scheduler.schedule(begin)
        outputs = [self._end(seq, "deadline") for seq in plan.expired]
        for seq_id in plan.preempted:
            self._builder.forget(seq_id)
        if plan.entries:
            try:
                sampled = self._run(plan)
            except BaseException as error:
                outputs += self._abandon(plan, error)
                if isinstance(error, Exception):
                    raise StepFailedError(outputs) from error
                raise  # Ctrl-C in `LLM`, which may go on with other prompts
            outputs += self._complete(plan, sampled)
        seconds = self._clock() - begin
        self._speculator.learn(plan, seconds)
        self._step_seconds += seconds
        return outputs

    def stats(self) -> EngineStats:
        """Returns the counters as of now."""
        return EngineStats(
            **self.scheduler.stats()._asdict(),
            step_seconds_total=self._step_seconds,
            kernel_seconds_total=self._kernel_seconds,
        )

    def close(self) -> None:
        """Gives the executor's memory and threads back."""
        self._speculator.close()
        self._executor.close()

    def _make_sequence(self, request: Request, index: int) -> Sequence:
        params, now = request.params, self._clock()
        assert params.max_tokens is not None, "admission fills max_tokens in"
        stop_token_ids = frozenset(params.stop_token_ids)
        return Sequence(
            seq_id=next(self._seq_ids),
            request_id=request.request_id,
            index=index,
            prompt_token_ids=request.prompt_token_ids,
            max_tokens=params.max_tokens,
            min_tokens=params.min_tokens,
            stop_token_ids=stop_token_ids if params.ignore_eos else stop_token_ids | self._eos_token_ids,
            eos_token_ids=self._eos_token_ids,
            priority=request.priority,
            arrival_s=now,
            deadline_s=None if request.deadline_s is None else now + request.deadline_s,
            cache_salt=request.cache_salt,
            needs_prompt_logits=params.prompt_logprobs is not None and index == 0,
        )

    def _run(self, plan: StepPlan) -> list[SampledToken]:
        step = self._builder.build(plan.entries)
        rows = self._speculator.sample_rows(step)
        logits = self._executor.execute(step.inputs, wants_sums=self._sampler.wants_sums(rows))
        self._kernel_seconds += self._executor.kernel_seconds
        for prompt_rows in step.prompt_rows:
            self._judge_prompt(prompt_rows, logits)
        return self._sampler.sample(logits, rows, self._executor.peaks, self._executor.sums)

    def _judge_prompt(self, rows: PromptRows, logits: npt.NDArray[np.float32]) -> None:
        live = self._live[rows.seq.seq_id]
        assert live.num_prompt_logprobs is not None
        if rows.first_target == 1:  # the first chunk, or all again after a preemption
            live.prompt_logprobs = [None]
        targets = rows.seq.prompt_token_ids[rows.first_target : rows.first_target + rows.count]
        chosen = logits[rows.logit_row : rows.logit_row + rows.count]
        live.prompt_logprobs += self._sampler.prompt_logprobs(chosen, targets, live.num_prompt_logprobs)

    def _complete(self, plan: StepPlan, sampled: list[SampledToken]) -> list[SequenceOutput]:
        tokens: dict[int, list[int]] = {}
        for token in sampled:  # several in a row where guesses were right
            tokens.setdefault(token.seq_id, []).append(token.token_id)
        result = self.scheduler.complete(plan, tokens, self._clock())
        outputs: dict[int, SequenceOutput] = {}
        for token in sampled:
            output = outputs.get(token.seq_id)
            if output is None:
                output = outputs[token.seq_id] = self._tell(self._live[token.seq_id].seq, [])
            if token.error is None:
                output.token_ids.append(token.token_id)
            if token.logprob is not None:
                output.logprobs = [*(output.logprobs or ()), token.logprob]
        for seq, reason, stop_reason in result.finished:
            output = outputs.setdefault(seq.seq_id, self._tell(seq, []))
            output.stop_reason = stop_reason
            self._end(seq, reason, output)
        for token in sampled:
            if token.error is not None:
                self._end_broken(token, outputs[token.seq_id])
        return list(outputs.values())

    def _end_broken(self, token: SampledToken, output: SequenceOutput) -> None:
        """Ends a sequence for which there was no token to choose; the stand-in may have ended it already."""
        output.finish_reason, output.stop_reason, output.error = "error", None, token.error
        live = self._live.get(token.seq_id)
        if live is not None:
            self.scheduler.cancel(token.seq_id)
            self._release(live.seq)

    def _tell(self, seq: Sequence, token_ids: list[int]) -> SequenceOutput:
        """Starts an output; the first of a sequence says what is known once it ran."""
        live = self._live[seq.seq_id]
        output = SequenceOutput(seq.request_id, seq.index, token_ids, num_cached_tokens=seq.num_cached_tokens)
        if not live.is_told and seq.first_scheduled_s is not None:
            live.is_told = True
            output.queue_s = seq.first_scheduled_s - seq.arrival_s
            output.prompt_logprobs = None if live.num_prompt_logprobs is None else live.prompt_logprobs
        return output

    def _end(
        self, seq: Sequence, reason: FinishReason, output: SequenceOutput | None = None, error: ErrorInfo | None = None
    ) -> SequenceOutput:
        """Ends an output, and what is kept of a sequence that the scheduler has let go."""
        output = output or self._tell(seq, [])
        output.finish_reason = reason
        if reason == "deadline":
            error = ErrorInfo(DeadlineError.code, "The request's deadline passed before it finished.")
        output.error = error
        self._release(seq)
        return output

    def _abandon(self, plan: StepPlan, cause: BaseException) -> list[SequenceOutput]:
        error = ErrorInfo(MillpondError.code, f"The step failed: {type(cause).__name__}: {cause}")
        return [self._end(seq, "error", error=error) for seq in self.scheduler.abandon(plan)]

    def _release(self, seq: Sequence) -> None:
        self._sampler.remove(seq.seq_id)
        self._speculator.forget(seq.seq_id)
        self._builder.forget(seq.seq_id)
        del self._live[seq.seq_id]
        siblings = self._seq_ids_of[seq.request_id]
        siblings.remove(seq.seq_id)
        if not siblings:
            del self._seq_ids_of[seq.request_id]

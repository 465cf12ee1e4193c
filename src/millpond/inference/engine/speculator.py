"""`Speculator`: puts guesses of the next tokens into sequences before a step, and learns from what became of them.

Owns one predictor a running sequence and the policy that says how many guesses pay. Knows neither executors nor the
sampler: a step computes guesses like any other tokens, and the sampler keeps those it would have chosen. Called by
`EngineCore` around each step. See docs/design/speculation.md.
"""

from __future__ import annotations

from typing import Protocol

from millpond.inference.engine.inputs import BuiltStep
from millpond.inference.sampling.sampler import SampleRow
from millpond.inference.sched.ngram import HitRates, NgramPredictor
from millpond.inference.sched.scheduler import Scheduler
from millpond.inference.sched.speculation import SpeculationPolicy
from millpond.inference.sched.state import Sequence
from millpond.inference.sched.step import StepPlan


class Speculator(Protocol):
    """What the core calls around a step."""

    def propose(self, scheduler: Scheduler) -> None:
        """Sets `draft_token_ids` of running sequences for the next step."""
        ...

    def sample_rows(self, step: BuiltStep) -> list[SampleRow]:
        """What the sampler is asked, guesses included."""
        ...

    def learn(self, plan: StepPlan, seconds: float) -> None:
        """Takes the outcome of a completed step, and how long all of it took, `propose` included."""
        ...

    def forget(self, seq_id: int) -> None:
        """Drops what is kept of a sequence that ended; one that is not known is fine."""
        ...

    def close(self) -> None:
        """Gives memory and threads back."""
        ...


class NoSpeculator:
    """Never guesses."""

    def propose(self, scheduler: Scheduler) -> None:
        """Does nothing."""

    def sample_rows(self, step: BuiltStep) -> list[SampleRow]:
        """One row a sequence."""
        return [SampleRow(seq.seq_id, row) for seq, row, _ in step.sample_rows]

    def learn(self, plan: StepPlan, seconds: float) -> None:
        """Does nothing."""

    def forget(self, seq_id: int) -> None:
        """Does nothing."""

    def close(self) -> None:
        """Does nothing."""


class NgramSpeculator:
    """Guesses from each sequence's own text.

    Args:
        policy: Says how many guesses a step computes.
        max_guesses: Most guesses for one sequence.
    """

    def __init__(self, policy: SpeculationPolicy, max_guesses: int) -> None:
        self._policy = policy
        self._max_guesses = max_guesses
        self._everyone = HitRates()
        self._predictors: dict[int, NgramPredictor] = {}
        self._guessed: list[Sequence] = []  # what the last step was given

    def propose(self, scheduler: Scheduler) -> None:
        """Guesses for sequences that decode, when all that run do."""
        clear_guesses(self._guessed)
        running = scheduler.running
        if any(seq.num_tokens - seq.num_computed_tokens != 1 for seq in running):
            return  # a step with prompts computes much anyway; its time says nothing about guesses
        if not self._policy.can_pay(len(running)):
            return  # predictors read what they miss when it can
        offers: list[tuple[Sequence, NgramPredictor]] = []
        confidences: list[float] = []
        for seq in running:
            predictor = self._predictors.get(seq.seq_id)
            if predictor is None:
                predictor = self._predictors[seq.seq_id] = NgramPredictor(seq.token_ids, self._everyone)
            else:
                predictor.advance()
            confidence = predictor.confidence
            if confidence > 0.0:
                offers.append((seq, predictor))
                confidences.append(confidence)
        if not offers:
            return
        counts = self._policy.choose(len(running), confidences)
        for (seq, predictor), count in zip(offers, counts, strict=True):
            if count:
                seq.draft_token_ids = predictor.propose(count)
                self._guessed.append(seq)

    def sample_rows(self, step: BuiltStep) -> list[SampleRow]:
        """Each sequence's rows, with the guesses they judge."""
        return [
            SampleRow(seq.seq_id, row, seq.draft_token_ids[:num_drafts]) if num_drafts else SampleRow(seq.seq_id, row)
            for seq, row, num_drafts in step.sample_rows
        ]

    def learn(self, plan: StepPlan, seconds: float) -> None:
        """Tells the policy what the step cost and brought."""
        learn_step(self._policy, plan, seconds)

    def forget(self, seq_id: int) -> None:
        """Drops the sequence's index."""
        self._predictors.pop(seq_id, None)

    def close(self) -> None:
        """Nothing but memory is held."""


def clear_guesses(guessed: list[Sequence]) -> None:
    """Takes back what a step did not compute: the sequence was preempted, or there was no room."""
    for seq in guessed:
        seq.draft_token_ids = []
    guessed.clear()


def learn_step(policy: SpeculationPolicy, plan: StepPlan, seconds: float) -> None:
    """Tells a policy about a step, if every sequence in it decoded; after `Scheduler.complete`."""
    num_guesses = num_accepted = 0
    for seq, start, num_tokens, samples, num_drafts in plan.entries:
        if num_tokens - num_drafts != 1 or not samples:
            return
        if num_drafts:
            num_guesses += num_drafts
            num_accepted += seq.num_tokens - start - 2  # one was known, one is the step's own
    policy.observe(len(plan.entries), num_guesses, num_accepted, seconds)

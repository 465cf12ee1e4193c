"""`DraftSpeculator`: guesses by a draft model, where what they bring is measured to be more than what they cost.

Owns the draft model and the account of how often each sequence's guesses were right. Decides which sequences the draft
model follows: computing a prompt twice must be earned back. Called by `EngineCore` around each step, as every
`Speculator`. See docs/design/speculation.md.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence as SequenceOf

from millpond.inference.engine.draft_model import DraftModel
from millpond.inference.engine.inputs import BuiltStep
from millpond.inference.engine.speculator import clear_guesses, learn_step
from millpond.inference.sampling.drafts import Draft
from millpond.inference.sampling.sampler import SampleRow
from millpond.inference.sched.ngram import HitRates
from millpond.inference.sched.scheduler import Scheduler
from millpond.inference.sched.speculation import SpeculationPolicy
from millpond.inference.sched.state import Sequence
from millpond.inference.sched.step import StepPlan

FIRST_CREDIT = 32.0  # steps: following the first prompts costs before it earns
MOST_CREDIT = 256.0
_HOPE = 0.7  # how often guesses are right before anything is known
_HOPE_AGAIN = 512  # steps without a guess after which old disappointments are forgotten; twice as many each time
_LONGEST_DOUBT = 8192  # steps, at most
_EARNED_BACK = 0.5  # of what a sequence may still gain, at most, is spent on following it
_FIRST_OUTPUT = 64.0  # tokens a sequence is expected to have left before any has ended
_WEIGHT = 0.1  # of a new measurement


class DraftSpeculator:
    """Guesses with a draft model.

    Args:
        model: The draft model.
        policy: Says how many guesses a step computes.
        max_guesses: Most guesses for one sequence.
    """

    def __init__(self, model: DraftModel, policy: SpeculationPolicy, max_guesses: int) -> None:
        self._model = model
        self._policy = policy
        self._max_guesses = max_guesses
        self._everyone = HitRates(_HOPE)
        self._rates: dict[int, HitRates] = {}
        self._drafts: dict[int, list[Draft]] = {}
        self._guessed: list[Sequence] = []
        self._num_idle = 0  # steps since the last guess
        self._doubt = _HOPE_AGAIN  # how many may pass
        self._caught_up_s = 0.0  # in this step
        self._catch_up_price: float | None = None  # seconds a token
        self._mean_output = _FIRST_OUTPUT
        self._is_broken = False

    def propose(self, scheduler: Scheduler) -> None:
        """Guesses for sequences that decode, when all that run do. A draft model that fails is not asked again."""
        clear_guesses(self._guessed)
        self._drafts = {}
        self._caught_up_s = 0.0
        running = scheduler.running
        if self._is_broken or any(seq.num_tokens - seq.num_computed_tokens != 1 for seq in running):
            return
        try:
            self._guess(running)
        except Exception:
            self._is_broken = True
            logging.getLogger(__name__).exception("The draft model failed; the engine goes on without guesses.")

    def sample_rows(self, step: BuiltStep) -> list[SampleRow]:
        """Each sequence's rows, with the guesses they judge and what these were drawn from."""
        rows = []
        for seq, row, num_drafts in step.sample_rows:
            drafts = self._drafts.get(seq.seq_id, [])[:num_drafts]
            rows.append(
                SampleRow(seq.seq_id, row, [draft.token_id for draft in drafts], [draft.odds for draft in drafts])
            )
        return rows

    def learn(self, plan: StepPlan, seconds: float) -> None:
        """Takes what became of the guesses, and tells the policy what the step cost and brought."""
        for seq, start, num_tokens, _, num_drafts in plan.entries:
            if num_drafts:
                num_accepted = seq.num_tokens - (start + num_tokens - num_drafts) - 1
                self._score(seq.seq_id, num_accepted, num_drafts)
            if seq.finish_reason is not None:
                self._mean_output += _WEIGHT * (len(seq.output_token_ids) - self._mean_output)
        self._policy.spend(len(plan.entries), self._caught_up_s)
        learn_step(self._policy, plan, seconds - self._caught_up_s)

    def forget(self, seq_id: int) -> None:
        """Drops what is kept of a sequence."""
        self._rates.pop(seq_id, None)
        self._model.forget(seq_id)

    def close(self) -> None:
        """Closes the draft model."""
        self._model.close()

    def _guess(self, running: SequenceOf[Sequence]) -> None:
        num_sequences, kept = len(running), {seq.seq_id for seq in running}
        ready: list[Sequence] = []
        behind: list[Sequence] = []
        for seq in running:
            if seq.max_total_tokens - seq.num_tokens > 1 and self._model.can_guess(seq, self._max_guesses):
                is_ready = self._model.num_missing(seq) <= 2 * self._max_guesses
                (ready if is_ready else behind).append(seq)
        self._follow([seq for seq in behind if self._is_worth_following(seq, num_sequences)], kept)
        confidences = [self._confidence(seq.seq_id) for seq in ready]
        counts = self._policy.choose(num_sequences, confidences)
        room = [min(count, seq.max_total_tokens - seq.num_tokens - 1) for seq, count in zip(ready, counts, strict=True)]
        wanted = [(seq, count) for seq, count in zip(ready, room, strict=True) if count]
        self._note_idleness(bool(wanted))
        if not wanted:
            return
        self._drafts = self._model.guess(wanted, kept)
        for seq, _ in wanted:
            drafts = self._drafts.get(seq.seq_id)
            if drafts:
                seq.draft_token_ids = [draft.token_id for draft in drafts]
                self._guessed.append(seq)

    def _follow(self, sequences: list[Sequence], kept: set[int]) -> None:
        if not sequences:
            return
        count, seconds = self._model.catch_up(sequences, kept)
        self._caught_up_s += seconds
        if count:
            price = seconds / count
            known = self._catch_up_price
            self._catch_up_price = price if known is None else known + _WEIGHT * (price - known)

    def _is_worth_following(self, seq: Sequence, num_sequences: int) -> bool:
        """Whether the draft model's work on a sequence's known tokens will be earned back, as far as one can tell."""
        saved = self._policy.saved_seconds(num_sequences, self._confidence(seq.seq_id))
        left = min(float(seq.max_total_tokens - seq.num_tokens), self._mean_output)
        price = self._catch_up_price or 0.0  # the first to be followed shows what it costs
        return saved > 0.0 and price * self._model.num_missing(seq) <= _EARNED_BACK * saved * left

    def _confidence(self, seq_id: int) -> float:
        own = self._rates.get(seq_id)
        return self._everyone.rate(0) if own is None else own.rate(0, self._everyone)

    def _score(self, seq_id: int, num_accepted: int, num_drafts: int) -> None:
        if 2 * num_accepted > num_drafts:
            self._doubt = _HOPE_AGAIN
        own = self._rates.setdefault(seq_id, HitRates())
        for is_hit in [True] * num_accepted + [False] * (num_accepted < num_drafts):
            own.add(0, is_hit)
            self._everyone.add(0, is_hit)

    def _note_idleness(self, has_guesses: bool) -> None:
        self._num_idle = 0 if has_guesses else self._num_idle + 1
        if self._num_idle >= self._doubt:
            self._num_idle = 0
            self._doubt = min(2 * self._doubt, _LONGEST_DOUBT)
            self._everyone = HitRates(_HOPE)
            self._rates.clear()
            if self._catch_up_price is not None:
                self._catch_up_price /= 2.0  # it may have been measured while the machine was elsewhere

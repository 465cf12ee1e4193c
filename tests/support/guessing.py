"""Speculation that does not wait to be worth it, so that tests see it at work."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from millpond.inference.engine.inputs import BuiltStep
from millpond.inference.engine.speculator import NgramSpeculator, clear_guesses
from millpond.inference.sampling.sampler import SampleRow
from millpond.inference.sched import Scheduler, StepPlan
from millpond.inference.sched import Sequence as SchedSequence
from millpond.inference.sched.speculation import SpeculationPolicy


class EagerPolicy(SpeculationPolicy):
    """Computes every guess there is."""

    def choose(self, num_sequences: int, confidences: Sequence[float]) -> list[int]:
        return [self._max_guesses] * len(confidences)

    def can_pay(self, num_sequences: int) -> bool:
        return True

    def saved_seconds(self, num_sequences: int, confidence: float) -> float:
        return 1.0


class ToldSpeculator:
    """Guesses what `guess` says for a sequence's known tokens, prompts' last chunks included."""

    def __init__(self, guess: Callable[[SchedSequence], list[int]]) -> None:
        self._guess = guess
        self._rows = NgramSpeculator(EagerPolicy(1), 1)
        self._guessed: list[SchedSequence] = []

    def propose(self, scheduler: Scheduler) -> None:
        clear_guesses(self._guessed)
        for seq in scheduler.running:
            seq.draft_token_ids = self._guess(seq)
            self._guessed.append(seq)

    def sample_rows(self, step: BuiltStep) -> list[SampleRow]:
        return self._rows.sample_rows(step)

    def learn(self, plan: StepPlan, seconds: float) -> None:
        for entry in plan.entries:
            assert entry.seq.num_computed_tokens < entry.seq.num_tokens or entry.seq.finish_reason

    def forget(self, seq_id: int) -> None:
        pass

    def close(self) -> None:
        pass

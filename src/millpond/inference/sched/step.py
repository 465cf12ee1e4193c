"""What the scheduler says about one step: the plan before it, the result after it.

Immutable messages between the scheduler and the engine; named tuples because a step makes one for every sequence. Know
nothing of how the plan came about. The engine turns a plan into tensors, the simulator into a cost.
"""

from __future__ import annotations

from typing import NamedTuple

from millpond.api.request import FinishReason
from millpond.inference.sched.state import Sequence


class StepEntry(NamedTuple):
    """Compute `num_tokens` tokens of `seq` from position `start`.

    `samples` is True when they reach the last known token, so that the step yields the next one. The last
    `num_drafts` of them are guesses from `seq.draft_token_ids`.
    """

    seq: Sequence
    start: int
    num_tokens: int
    samples: bool
    num_drafts: int = 0


class StepPlan(NamedTuple):
    """One step. Entries of one token come first, then the longer ones, each kind most urgent first.

    `expired` ended before this step by their deadline. `preempted` are sequences that lost their blocks and wait again.
    A plan with entries must be completed before the next one is made; a plan without needs nothing.
    """

    step_id: int
    entries: tuple[StepEntry, ...]
    expired: tuple[Sequence, ...]
    preempted: tuple[int, ...]

    @property
    def num_tokens(self) -> int:
        """Tokens the step computes."""
        return sum(entry.num_tokens for entry in self.entries)


class FinishedSequence(NamedTuple):
    """A sequence that ended in a step. `stop_reason` is the stop token unless that is an end-of-sequence token."""

    seq: Sequence
    reason: FinishReason
    stop_reason: int | None


class StepResult(NamedTuple):
    """What a completed step led to."""

    finished: tuple[FinishedSequence, ...]


class SchedulerStats(NamedTuple):
    """Gauges and counters; counters never go down. Prompt tokens count once for each sequence, when it first runs."""

    num_running: int
    num_waiting: int
    num_blocks: int
    num_free_blocks: int
    num_cached_blocks: int
    steps_total: int
    prompt_tokens_total: int
    output_tokens_total: int
    prefix_query_tokens_total: int
    prefix_hit_tokens_total: int
    preemptions_total: int
    draft_tokens_total: int
    accepted_draft_tokens_total: int

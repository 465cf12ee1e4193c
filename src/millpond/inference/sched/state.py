"""`Sequence`, the scheduler's unit, and the limits it works within.

A sequence knows its tokens, how many of them are computed, and which blocks hold them. The engine makes it and reads
it; between `Scheduler.add` and its end only the scheduler changes it. Pure data: no torch, no clock.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum

from millpond.api.request import FinishReason
from millpond.base.errors import ConfigError


class SequenceStatus(Enum):
    """Where a sequence is. One that was preempted is waiting again."""

    NEW = "new"
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """What one step and one engine may hold.

    Attributes:
        max_batch_tokens: Most tokens in one step.
        max_sequences: Most sequences that run at once.
        max_queue: Most sequences that wait beyond the free places among the running.
        max_model_len: Longest prompt plus output, tokens.
    """

    max_batch_tokens: int
    max_sequences: int
    max_queue: int
    max_model_len: int

    def __post_init__(self) -> None:
        for name, least in (("max_batch_tokens", 1), ("max_sequences", 1), ("max_queue", 0), ("max_model_len", 1)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} is {getattr(self, name)}.", fix=f"Set it to {least} or more.", param=name)

    @property
    def max_running(self) -> int:
        """Sequences that run at once: a step must have a token for each."""
        return min(self.max_sequences, self.max_batch_tokens)


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """One continuation of one prompt. The arguments are fixed; everything below them belongs to the scheduler.

    Args:
        seq_id: Unique in the engine's life.
        request_id: The request it answers; `index` counts the request's n choices.
        max_tokens: Most tokens to sample. 0 computes the prompt and samples nothing.
        min_tokens: Stop tokens do not end the sequence before it has this many.
        stop_token_ids: What ends it, end-of-sequence tokens included unless the request ignores them.
        eos_token_ids: Those of the above that are not worth a `stop_reason`.
        priority: Lower runs first.
        arrival_s: Earlier runs first within a priority.
        deadline_s: When it ends, finished or not, on the clock of `Scheduler.schedule`.
        cache_salt: Sequences share blocks only when their salts are equal.
        needs_prompt_logits: Every prompt token must be computed, so no prefix is taken from the cache.
    """

    seq_id: int
    request_id: str
    index: int = 0
    prompt_token_ids: list[int]
    max_tokens: int
    min_tokens: int = 0
    stop_token_ids: frozenset[int] = frozenset()
    eos_token_ids: Collection[int] = frozenset()
    priority: int = 0
    arrival_s: float = 0.0
    deadline_s: float | None = None
    cache_salt: str = ""
    needs_prompt_logits: bool = False

    token_ids: list[int] = field(init=False)  # prompt and output
    output_token_ids: list[int] = field(init=False, default_factory=list)
    num_tokens: int = field(init=False)  # known: len(token_ids)
    num_computed_tokens: int = field(init=False, default=0)
    num_cached_tokens: int = field(init=False, default=0)  # of the prompt, found in the cache when it first ran
    block_ids: list[int] = field(init=False, default_factory=list)
    block_keys: list[bytes] = field(init=False, default_factory=list, repr=False)
    # The engine may set guesses of the next tokens before a step; the step computes them too and they are gone after
    # it.
    draft_token_ids: list[int] = field(init=False, default_factory=list)
    status: SequenceStatus = field(init=False, default=SequenceStatus.NEW)
    finish_reason: FinishReason | None = field(init=False, default=None)
    stop_reason: int | None = field(init=False, default=None)
    first_scheduled_s: float | None = field(init=False, default=None)
    num_preemptions: int = field(init=False, default=0)
    max_total_tokens: int = field(init=False)  # where it ends at the latest; set by Scheduler.add
    urgency: tuple[int, float, int] = field(init=False, repr=False)  # sorts sequences, most urgent first
    deadline_or_inf: float = field(init=False, repr=False)
    num_probed_blocks: int = field(init=False, default=0, repr=False)  # see PrefixCache.probe

    def __post_init__(self) -> None:
        self.token_ids = list(self.prompt_token_ids)
        self.num_tokens = len(self.token_ids)
        self.max_total_tokens = self.num_tokens + self.max_tokens
        self.urgency = (self.priority, self.arrival_s, self.seq_id)
        self.deadline_or_inf = math.inf if self.deadline_s is None else self.deadline_s

    @property
    def num_prompt_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.prompt_token_ids)

    @property
    def num_remaining_tokens(self) -> int:
        """Known tokens that are not computed."""
        return self.num_tokens - self.num_computed_tokens

    @property
    def max_cached_tokens(self) -> int:
        """How many known tokens may come from the cache: never the last one, whose logits choose the next token."""
        # Once it has sampled, the prompt's logits were all delivered.
        if self.needs_prompt_logits and not self.output_token_ids:
            return 0
        return self.num_tokens - 1

    def input_token_ids(self, start: int, num_tokens: int) -> list[int]:
        """The tokens at positions `start .. start+num_tokens-1`, drafts behind the known ones."""
        known = self.token_ids[start : start + num_tokens]
        missing = num_tokens - len(known)
        return known + self.draft_token_ids[:missing] if missing else known

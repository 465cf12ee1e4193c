"""`TransitionLog`: what went into a scheduler and what came out, kept in bounded memory, and its replay.

The scheduler is a function of its calls, so a log of the calls brings back any decision it made: attach a log to a
live engine, and a plan that looks wrong can be replayed under a debugger. Knows the public surface of `Scheduler` and
nothing of its decisions. Records are numbers and tuples, never live sequences. Lives in memory only.
"""

from __future__ import annotations

import pickle
from array import array
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from millpond.base.errors import MillpondError
from millpond.inference.sched.state import Sequence
from millpond.inference.sched.step import StepPlan, StepResult

if TYPE_CHECKING:
    from millpond.inference.sched.scheduler import Scheduler

Record = tuple[str, tuple[Any, ...]]


class ReplayError(MillpondError):
    """A replayed scheduler decided otherwise than the recorded one."""

    code = "replay_differs"


@dataclass(slots=True)
class _Segment:
    """A scheduler between two steps, and what happened from there on."""

    checkpoint: bytes
    records: list[Record] = field(default_factory=list)
    cost: int = 0


class TransitionLog:
    """A ring of two segments, each beginning with a checkpoint, so that what is left can always be replayed.

    Args:
        capacity: Numbers (token ids, sequence ids, positions) to keep, about; the older half goes when it is reached.
            Checkpoints come on top.
    """

    def __init__(self, capacity: int = 1 << 20) -> None:
        self._capacity = capacity
        self._segments: deque[_Segment] = deque(maxlen=2)

    @property
    def num_records(self) -> int:
        """How many calls can be replayed."""
        return sum(len(segment.records) for segment in self._segments)

    @property
    def cost(self) -> int:
        """Numbers held now."""
        return sum(segment.cost for segment in self._segments)

    def begin(self, scheduler: Scheduler) -> None:
        """Starts a segment with the scheduler as it is. It must not have a step in flight."""
        self._segments.append(_Segment(pickle.dumps(scheduler)))

    def begin_step(self, scheduler: Scheduler) -> None:
        """Called between steps: the moment to start a new segment when the last one is full."""
        if self._segments[-1].cost >= self._capacity // 2:
            self.begin(scheduler)

    def record_add(self, group: list[Sequence]) -> None:
        """Sequences are about to be queued."""
        arguments = tuple(_arguments(seq) for seq in group)
        self._record("add", (arguments,), sum(seq.num_tokens + 16 for seq in group))

    def record_cancel(self, seq_id: int) -> None:
        """A sequence is about to be cancelled."""
        self._record("cancel", (seq_id,), 1)

    def record_plan(self, plan: StepPlan, now_s: float) -> None:
        """A step was planned. Drafts the plan did not use made no difference and are not kept."""
        drafts = {
            entry.seq.seq_id: entry.seq.draft_token_ids[: entry.num_drafts]
            for entry in plan.entries
            if entry.num_drafts
        }
        digest = _digest_plan(plan)
        self._record("schedule", (now_s, drafts, digest), len(digest[0]) + 4)

    def record_tokens(self, tokens: Mapping[int, int | list[int]], now_s: float) -> None:
        """A step is about to be completed."""
        self._record("complete", (dict(tokens), now_s), 2 * len(tokens) + 2)

    def record_result(self, result: StepResult) -> None:
        """A step was completed."""
        digest = _digest_result(result)
        self._record("result", (digest,), 3 * len(digest) + 1)

    def record_abandon(self) -> None:
        """A step failed and is about to be given up."""
        self._record("abandon", (), 1)

    def replay(self) -> int:
        """Drives a fresh scheduler through what is recorded, every invariant checked. Returns the number of steps.

        Raises:
            ReplayError: A decision differs from the recorded one.
        """
        first = self._segments[0]
        player = _Player(pickle.loads(first.checkpoint))
        for segment in self._segments:
            for kind, values in segment.records:
                player.play(kind, values)
        return player.num_steps

    def _record(self, kind: str, values: tuple[Any, ...], cost: int) -> None:
        segment = self._segments[-1]
        segment.records.append((kind, values))
        segment.cost += cost


def replay(log: TransitionLog) -> int:
    """Replays a log; see `TransitionLog.replay`."""
    return log.replay()


class _Player:
    """Applies records to a scheduler and compares its answers."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.num_steps = 0
        self._scheduler = scheduler
        self._sequences: dict[int, Sequence] = {seq.seq_id: seq for seq in scheduler.sequences()}
        self._plan: StepPlan | None = None
        self._result: StepResult | None = None
        self._actions: dict[str, Callable[..., None]] = {
            "add": self._add,
            "cancel": self._cancel,
            "schedule": self._schedule,
            "complete": self._complete,
            "result": self._compare_result,
            "abandon": self._abandon,
        }

    def play(self, kind: str, values: tuple[Any, ...]) -> None:
        self._actions[kind](*values)
        self._scheduler.check_integrity()

    def _add(self, arguments: tuple[dict[str, Any], ...]) -> None:
        group = [Sequence(**{**values, "prompt_token_ids": list(values["prompt_token_ids"])}) for values in arguments]
        self._sequences.update((seq.seq_id, seq) for seq in group)
        self._scheduler.add_group(group)

    def _cancel(self, seq_id: int) -> None:
        self._scheduler.cancel(seq_id)

    def _schedule(self, now_s: float, drafts: dict[int, list[int]], expected: tuple[Any, ...]) -> None:
        for seq_id, token_ids in drafts.items():
            self._sequences[seq_id].draft_token_ids = list(token_ids)
        self._plan = self._scheduler.schedule(now_s)
        self._compare("plan", expected, _digest_plan(self._plan))
        self.num_steps += 1

    def _complete(self, tokens: dict[int, int | list[int]], now_s: float) -> None:
        assert self._plan is not None, "a step is completed before it is planned"
        self._result = self._scheduler.complete(self._plan, tokens, now_s)

    def _abandon(self) -> None:
        assert self._plan is not None, "a step is abandoned before it is planned"
        self._scheduler.abandon(self._plan)

    def _compare_result(self, expected: tuple[Any, ...]) -> None:
        assert self._result is not None, "a result comes before its step is completed"
        self._compare("result", expected, _digest_result(self._result))

    def _compare(self, what: str, expected: object, actual: object) -> None:
        if actual != expected:
            step_id = self._plan.step_id if self._plan is not None else 0
            raise ReplayError(f"The {what} of step {step_id} was {expected} and is {actual} now.")


def _arguments(seq: Sequence) -> dict[str, Any]:
    values = {item.name: getattr(seq, item.name) for item in fields(Sequence) if item.init}
    return {**values, "prompt_token_ids": array("I", seq.prompt_token_ids)}


def _digest_plan(plan: StepPlan) -> tuple[Any, ...]:
    entries = array("q")
    for seq, start, num_tokens, _, num_drafts in plan.entries:
        entries.extend((seq.seq_id, start, num_tokens, num_drafts))
    return (entries, tuple(seq.seq_id for seq in plan.expired), plan.preempted)


def _digest_result(result: StepResult) -> tuple[Any, ...]:
    return tuple((seq.seq_id, reason, stop_reason) for seq, reason, stop_reason in result.finished)

"""What the scheduler keeps in mind: its limits, one pass over the queue, and failed searches until room may be there.

Owns no decision. `Scheduler` fills it and asks it; nothing else does.
"""

from __future__ import annotations

from dataclasses import dataclass

from millpond.jobs.scheduling.queue import Bucket, BucketKey
from millpond.jobs.scheduling.state import JobState
from millpond.jobs.scheduling.types import Decision


@dataclass(frozen=True, slots=True)
class SchedulerLimits:
    """Bounds on the work of one pass.

    Attributes:
        plan_depth: Waiting jobs for which cells are kept at the same time.
        shape_depth: How many of those may be aggregated: a machine that is emptied for one stands still meanwhile.
        eviction_tries: Searches for victims in one pass.
        bucket_scan: Shorter jobs looked at behind a blocked one of the same shape.
        may_preempt: Whether anybody is evicted at all.
        is_wired: Whether wiring counts in the choice of cells; without it jobs are packed, a baseline of benches.
        is_blind: Each replica goes to the emptiest node, whatever its wires: the other baseline.
        is_random: With `is_blind`, each goes to any node that has room.
    """

    plan_depth: int = 4
    shape_depth: int = 1
    eviction_tries: int = 1
    bucket_scan: int = 16
    may_preempt: bool = True
    is_wired: bool = True
    is_blind: bool = False
    is_random: bool = False


class Turn:
    """One pass: its time, its decisions, and what is left of its budget."""

    def __init__(self, eviction_tries: int, now_s: float, decisions: list[Decision]) -> None:
        self.evictions_left = eviction_tries
        self.plans_left = 1
        self.now_s = now_s
        self.decisions = decisions
        self.served: set[str] = set()
        self.reserved: dict[str, None] = {}  # in turn; nobody after them may evict them at once
        self.deferred: list[tuple[JobState, Bucket]] = []  # may be split once their equals had their turn
        self.scanned: dict[BucketKey, int] = {}
        self.quota_planned: dict[str, str] = {}


class Refusals:
    """What was searched in vain since capacity last came back."""

    def __init__(self) -> None:
        self._shortest_s: dict[int, float] = {}  # shape -> shortest estimate that found no room
        self._victimless: set[BucketKey] = set()  # for whom nobody can be evicted

    def clear(self) -> None:
        """Room may be there again."""
        self._shortest_s.clear()
        self._victimless.clear()

    def shortest_s(self, shape: int) -> float:
        """A job of this shape finds no room if it takes as long as this; infinite when nobody was refused."""
        return self._shortest_s.get(shape, float("inf"))

    def is_refused(self, shape: int, length_s: float) -> bool:
        """Whether a job of this shape and length would find no room."""
        return shape in self._shortest_s and length_s >= self._shortest_s[shape]

    def refuse(self, shape: int, length_s: float) -> None:
        """A job of this shape and length found no room."""
        self._shortest_s[shape] = min(self.shortest_s(shape), length_s)

    def is_victimless(self, bucket: BucketKey) -> bool:
        """Whether a search for victims would end as it did before."""
        return bucket in self._victimless

    def note_victimless(self, bucket: BucketKey) -> None:
        """Nobody can be evicted for jobs of this bucket."""
        self._victimless.add(bucket)
